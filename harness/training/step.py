"""Model, optimizer and data of a run, and one optimizer step of them."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.mixture import Mixture
from harness.optimizers import build_optimizer
from harness.training.batches import Batches
from harness.training.compilation import compile_layers
from harness.training.gradient_noise import add_gradient_outliers
from harness.training.phases import PhaseClock
from harness.training.schedules import learning_rate_factor
from harness.training.tasks import Task, make_task

Coefficients = Mapping[tuple[int, int], tuple[float, float, float]]


class TrainingStep:
    """What one optimizer step needs, apart from any record of it.

    Attributes:
        task: What is learned.
        model: On the device.
        optimizer: Of the model's parameters.
        accumulation: Micro-batches per step.
        clock: Time by phase.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        data: Path,
        device: torch.device,
        coefficients: Coefficients | None,
        accumulation: int | None = None,
    ) -> None:
        """Build model and optimizer.

        Args:
            spec: Resolved training specification with learning rate and seed.
            data: Folder of the prepared dataset.
            device: To train on.
            coefficients: AdaNewton coefficients by matrix shape, for optimizers that need them.
            accumulation: Micro-batches per step; None for as many as ``spec`` says.
        """
        self.training, self.seed, self.device = spec["training"], spec["seed"], device
        self.accumulation = accumulation or self.training["accumulation"]
        self.clock = PhaseClock(device)
        self.task: Task = make_task(spec, data, device)
        torch.manual_seed(self.seed)
        self.model = self.task.build().to(device)
        if spec["compile"]:
            compile_layers(self.model)
        self.optimizer = build_optimizer(
            spec["optimizer"], self.model, spec["learning_rate"], coefficients
        )
        self._batches = Batches(self.task.batch, self.training["steps"], device)

    @property
    def micro_batch(self) -> int:
        """Examples that pass through the model at a time."""
        return self.training["batch_size"] // self.accumulation

    def take(
        self, step: int, after_step: Callable[[int], None] = lambda _: None
    ) -> tuple[Tensor, Tensor]:
        """Take one optimizer step and return loss and gradient norm, on the device.

        Args:
            step: Steps taken so far.
            after_step: Called with the number of the step, from 1, before its gradients go.
        """
        steps = self.training["steps"]
        with self.clock.phase("data"):
            inputs, targets = self._batches.take(step)
        with self.clock.phase("forward_backward"):
            loss = self._accumulate(inputs, targets, step / steps)
        with self.clock.phase("optimizer"):
            norm = self._update(step)
            self.task.after_step(self.model, (step + 1) / steps)
        after_step(step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def autocast(self) -> torch.autocast:
        """Return the context in which the model computes."""
        lower = self.training["precision"] == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=lower)

    def close(self) -> None:
        """End what reads ahead."""
        self._batches.close()

    def _accumulate(self, inputs: Tensor, targets: Tensor, progress: float) -> Tensor:
        parts = self.accumulation
        loss = torch.zeros((), device=self.device)
        for some, wanted in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
            with self.autocast():
                objective, part = self.task.objective(self.model, some, wanted, progress)
            (objective / parts).backward()
            loss += part.detach() / parts
        return loss

    def _update(self, step: int) -> Tensor:
        factor = learning_rate_factor(self.training["schedule"], step, self.training["steps"])
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        outliers = self.training["gradient_outliers"]
        add_gradient_outliers(self.model.parameters(), outliers, self.seed, step)
        limit = self.training["gradient_clip"] or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        return norm


def finer_accumulation(batch_size: int, accumulation: int) -> int | None:
    """Return the accumulation with micro-batches of half the size or the next smaller one.

    Returns:
        None if a micro-batch is one example already.
    """
    divisors = range(2 * accumulation, batch_size + 1)
    return next((parts for parts in divisors if batch_size % parts == 0), None)


def micro_batches_matter(model: nn.Module) -> str | None:
    """Return the part of ``model`` that computes across a micro-batch, None if there is none.

    With such a part, smaller micro-batches are another computation.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return "batch normalization"
        if isinstance(module, Mixture):
            balance = module.moe.balance
            if balance.batch_loss or balance.auxiliary_loss:
                return "the balance loss of the experts"
            if module.moe.capacity_factor is not None:
                return "the capacity of the experts"
    return None
