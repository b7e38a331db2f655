"""One training run, from a resolved specification to a summary; interruptible at any step."""

import math
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from harness.errors import Interrupted, UserError
from harness.optimizers import build_optimizer
from harness.records.provenance import environment
from harness.records.run_folder import RunFolder
from harness.training.checkpoint import load_checkpoint, save_checkpoint, weights_sha256
from harness.training.gradient_noise import add_gradient_outliers
from harness.training.recorder import Recorder
from harness.training.schedules import learning_rate_factor
from harness.training.tasks import Task, make_task

Progress = Callable[[int, int, float], None]
# All other metrics are ratios.
UNITS = {"loss": "nats", "bits_per_byte": "bit/B"}


class NonFiniteLoss(Exception):
    """The loss is infinite or not a number."""


def run_training(
    spec: Mapping[str, Any],
    folder: RunFolder,
    data: Path,
    device: str,
    coefficients: Mapping[tuple[int, int], tuple[float, float, float]] | None,
    *,
    checkpoint_seconds: float,
    keep_weights: bool,
    progress: Progress,
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Train the run of ``spec``, or return the summary that it already has.

    Divergence and lack of memory are results, and so is any other exception of a run: each is
    recorded as the run's status and never stops the rest of a sweep.

    Args:
        spec: Resolved training specification with learning rate and seed.
        folder: Where the run lives.
        data: Folder of the prepared dataset.
        device: torch device to train on.
        coefficients: AdaNewton coefficients by matrix shape, for optimizers that need them.
        checkpoint_seconds: Wall time between checkpoints.
        keep_weights: Whether the final weights are needed for evaluation.
        progress: Called with step, steps and the last loss.
        stop: Asked between steps whether to save the state and stop.

    Raises:
        Interrupted: When ``stop`` says so, after saving a checkpoint.
        UserError: If data or checkpoint are not what they should be.
    """
    with folder.lock():
        done = folder.summary()
        if done is not None and (folder.weights.is_file() or not keep_weights or
                                 done["status"] != "completed"):  # fmt: skip
            return done
        folder.write_spec(spec)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        run, backends = None, {}
        try:
            run = _Run(spec, folder, data, torch.device(device), coefficients)
            backends = run.task.backends(run.model)
            outcome = run.train(checkpoint_seconds, progress, stop) | {"status": "completed"}
            if keep_weights:
                _save_weights(run.model, folder.weights)
        except NonFiniteLoss as error:
            outcome = {"status": "diverged", "reason": str(error)}
        except (torch.OutOfMemoryError, MemoryError) as error:
            outcome = {"status": "out_of_memory", "reason": str(error).splitlines()[0]}
        except (Interrupted, UserError):
            raise
        except Exception as error:
            traceback.print_exc()
            outcome = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        summary = {
            "run_id": folder.run_id,
            "reason": None,
            "spec": spec,
            "environment": environment() | {"threads": torch.get_num_threads()} | backends,
            "started": started,
            "seconds": run.seconds if run is not None else None,
            **outcome,
        }
        folder.write_summary(summary)
        return summary


class _Run:
    """The state of a run in progress."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        folder: RunFolder,
        data: Path,
        device: torch.device,
        coefficients: Mapping[tuple[int, int], tuple[float, float, float]] | None,
    ) -> None:
        self.training, self.seed = spec["training"], spec["seed"]
        self.folder, self.device = folder, device
        self.task: Task = make_task(spec, data, device)
        torch.manual_seed(self.seed)
        self.model = self.task.build().to(device)
        self.optimizer = build_optimizer(
            spec["optimizer"], self.model, spec["learning_rate"], coefficients
        )
        self.recorder = Recorder(folder, self.model, self.optimizer, self.training)
        self.step = 0
        self.seconds = 0.0
        self.interval_times: list[float] = []
        self._resume()

    def train(
        self, checkpoint_seconds: float, progress: Progress, stop: Callable[[], bool]
    ) -> dict[str, Any]:
        """Take the remaining steps and return the final metrics."""
        steps = self.training["steps"]
        losses: list[torch.Tensor] = []
        norms: list[torch.Tensor] = []
        saved = clock = time.perf_counter()
        while self.step < steps:
            loss, norm = self._step(steps)
            losses.append(loss)
            norms.append(norm)
            self.step += 1
            if self.step % self.training["log_interval"] and self.step < steps:
                continue
            mean_loss = self._log(losses, norms)
            self._count_time(clock, len(losses))
            progress(self.step, steps, mean_loss)
            losses, norms = [], []
            self._validate(steps)
            if self.step < steps and (stop() or time.perf_counter() - saved > checkpoint_seconds):
                self._save()
                saved = time.perf_counter()
                if stop():
                    raise Interrupted(f"stopped at step {self.step} of {steps}")
            clock = time.perf_counter()
        return self._finish()

    def _autocast(self) -> torch.autocast:
        lower = self.training["precision"] == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=lower)

    def _step(self, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        factor = learning_rate_factor(self.training["schedule"], self.step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        inputs, targets = self.task.batch(self.step)
        parts = self.training["accumulation"]
        loss = torch.zeros((), device=self.device)
        for some, wanted in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
            with self._autocast():
                objective, part = self.task.objective(self.model, some, wanted, self.step / steps)
            (objective / parts).backward()
            loss += part.detach() / parts
        outliers = self.training["gradient_outliers"]
        add_gradient_outliers(self.model.parameters(), outliers, self.seed, self.step)
        limit = self.training["gradient_clip"] or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        self.task.after_step(self.model, (self.step + 1) / steps)
        self.recorder.after_step(self.step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def _log(self, losses: list[torch.Tensor], norms: list[torch.Tensor]) -> float:
        # The only place where the host waits for the device.
        loss = torch.stack(losses).mean().item()
        norm = torch.stack(norms).mean().item()
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"loss {loss} at step {self.step}")
        statistics = self.task.statistics(self.model)
        self._record("train", {"loss": loss, "gradient_norm": norm, **statistics})
        return loss

    def _count_time(self, clock: float, steps: int) -> None:
        elapsed = time.perf_counter() - clock - self.recorder.take_seconds()
        self.seconds += elapsed
        self.interval_times.append(elapsed / steps)

    def _validate(self, steps: int) -> None:
        if self.step % self.training["evaluation_interval"] == 0 or self.step == steps:
            self._record("validation", self._evaluate("validation"))

    def _evaluate(self, split: Any) -> dict[str, float]:
        self.model.eval()
        metrics = self.task.evaluate(self.model, split, self._autocast)
        self.model.train()
        return metrics

    def _record(self, prefix: str, metrics: Mapping[str, float]) -> None:
        rows = [
            {
                "step": self.step,
                "metric": f"{prefix}/{name}",
                "value": value,
                "unit": UNITS.get(name, "1"),
            }
            for name, value in metrics.items()
            if math.isfinite(value)
        ]
        self.folder.append_metrics(rows)

    def _finish(self) -> dict[str, Any]:
        self._record("test", self._evaluate("test"))
        # The first interval pays for warming up caches and allocators.
        per_step = median(self.interval_times[1:] or self.interval_times)
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        return {
            "weights_sha256": weights_sha256(self.model.state_dict()),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "seconds_per_step": per_step,
            "examples_per_second": self.task.examples_per_step / per_step,
            "peak_memory_bytes": peak,
            "snapshots": self.recorder.steps,
        }

    def _save(self) -> None:
        save_checkpoint(
            self.folder.checkpoints,
            self.step,
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "step": self.step,
                "seconds": self.seconds,
                "interval_times": self.interval_times,
            },
        )

    def _resume(self) -> None:
        state = load_checkpoint(self.folder.checkpoints, self.device)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["random"].cpu())
            self.step, self.seconds = state["step"], state["seconds"]
            self.interval_times = state["interval_times"]
        self.folder.truncate_metrics(self.step)


def _save_weights(model: nn.Module, path: Path) -> None:
    partial = path.with_suffix(".partial")
    # Tied weights share storage, which safetensors refuses; clones are written instead.
    save_file({k: v.detach().cpu().clone() for k, v in model.state_dict().items()}, partial)
    partial.replace(path)
