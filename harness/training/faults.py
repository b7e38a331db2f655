"""Single bit flips in training, and what becomes of the run: silent corruption under a microscope.

A run is trained for some steps and kept. Every fault starts from that state: one bit of one value
flips, the run goes on with the same batches, and its losses are compared with those of the run
without a fault. All else is equal, bit for bit where the device is deterministic.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from harness.config.fault_schema import Part, Target
from harness.errors import UserError
from harness.numerics.bit_flips import flip_bit_
from harness.training.step import TrainingStep

TARGETS: tuple[Target, ...] = get_args(Target)
PARTS: tuple[Part, ...] = get_args(Part)

# Names of parameters, tried in this order.
_PARAMETERS: dict[Part, str] = {
    "norms": r"norm\.",
    "embedding": r"^embedding\.",
    "head": r"^head\.",
    "attention": r"^blocks\.\d+\.attention\.",
    "feed_forward": r"^blocks\.\d+\.feed_forward\.",
}
# Names of modules, whose output is an activation.
_MODULES: dict[Part, str] = {
    "norms": r"^(blocks\.\d+\.(attention|feed_forward)_)?norm$",
    "embedding": r"^embedding$",
    "head": r"^head$",
    "attention": r"^blocks\.\d+\.attention$",
    "feed_forward": r"^blocks\.\d+\.feed_forward$",
}
# Names under which optimizers keep them.
_MOMENTS = {"first_moment": ("exp_avg", "momentum_buffer"), "second_moment": ("exp_avg_sq",)}


@dataclass(frozen=True)
class Fault:
    """One bit flip.

    Attributes:
        target: What holds the value.
        part: Of the model.
        bit: Of ``harness.numerics.bit_flips.bit_names``.
        draw: Number of the place, which is the same for all bits.
        place: In [0, 1): which value, counted through all values of the target in the part.
    """

    target: Target
    part: Part
    bit: str
    draw: int
    place: float


@dataclass(frozen=True)
class Course:
    """How training went on for a few steps.

    Attributes:
        losses: Training loss of each step; ends with the first one that is not finite.
        validation: Validation loss after them; not a number if a training loss was not finite.
    """

    losses: tuple[float, ...]
    validation: float

    @property
    def is_finite(self) -> bool:
        """Whether every loss is a number."""
        return all(map(math.isfinite, (*self.losses, self.validation)))


def plan_faults(
    targets: Iterable[Target], parts: Iterable[Part], bits: Iterable[str], draws: int, seed: int
) -> list[Fault]:
    """Return all faults; a place depends on seed, target, part and draw alone."""
    faults = []
    for target in targets:
        for part in parts:
            stream = (seed, TARGETS.index(target), PARTS.index(part))
            places = np.random.default_rng(stream).random(draws)
            for draw, place in enumerate(places):
                faults += [Fault(target, part, bit, draw, float(place)) for bit in bits]
    return faults


def part_of(parameter: str) -> Part | None:
    """Return the part of a decoder that a parameter belongs to, by its name; maybe none."""
    found = (part for part, pattern in _PARAMETERS.items() if re.search(pattern, parameter))
    return next(found, None)


def state_of(step: TrainingStep) -> dict[str, Any]:
    """Return all that a step changes; its tensors are those in use."""
    return {
        "model": step.model.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }


def restore(step: TrainingStep, state: Mapping[str, Any]) -> None:
    """Go back to what ``state_of`` returned; the optimizer keeps the tensors of its part."""
    step.model.load_state_dict(state["model"])
    step.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"].cpu())


class FaultInjector:
    """Goes back to one state of a run again and again, to go on from there with a fault."""

    def __init__(self, step: TrainingStep, taken: int, observe: int) -> None:
        """Keep the state of ``step`` as the start of every course.

        Args:
            step: Of a decoder; not compiled, since compiled layers skip the hooks.
            taken: Steps that it has taken.
            observe: Steps of a course.
        """
        self.step, self.taken, self.observe = step, taken, observe
        self._start = deepcopy(state_of(step))

    def holders(self, target: Target, part: Part) -> list[Any]:
        """Return what a target of a part consists of, maybe nothing.

        Modules for activations, parameters for gradients, tensors otherwise.
        """
        if target == "activation":
            return [module for name, module in self.step.model.named_modules()
                    if re.search(_MODULES[part], name)]  # fmt: skip
        parameters = [parameter for name, parameter in self.step.model.named_parameters()
                      if part_of(name) == part]  # fmt: skip
        if target in ("weight", "gradient"):
            return parameters
        states = [optimizer.state.get(parameter, {}) for parameter in parameters
                  for optimizer in self.step.optimizer.parts.values()]  # fmt: skip
        return [state[name] for state in states for name in _MOMENTS[target] if name in state]

    def check(self, targets: Iterable[Target], parts: Iterable[Part], where: str) -> None:
        """Refuse targets and parts that there is nothing of; single pairs may be empty.

        Raises:
            UserError: With the first of them.
        """
        targets, parts = list(targets), list(parts)
        for target in targets:
            if not any(self.holders(target, part) for part in parts):
                raise UserError(f"{where}.targets: found {target}, which this optimizer does not "
                                f"keep; expected some of {', '.join(TARGETS)}")  # fmt: skip
        for part in parts:
            if not any(self.holders(target, part) for target in targets):
                raise UserError(f"{where}.parts: found {part}, of which this model has no "
                                f"{' or '.join(targets)}")  # fmt: skip

    def course(self, fault: Fault | None = None) -> Course:
        """Go on from the start, with a fault in the first step or without one."""
        self.restart()
        losses: list[float] = []
        for offset in range(self.observe):
            with self.injected(fault if offset == 0 else None):
                loss, _ = self.step.take(self.taken + offset)
            losses.append(loss.item())
            self.step.clock.collect()
            if not math.isfinite(losses[-1]):
                return Course(tuple(losses), math.nan)
        return Course(tuple(losses), self._validation_loss())

    def _validation_loss(self) -> float:
        step = self.step
        step.model.eval()
        metrics = step.task.evaluate(step.model, "validation", step.autocast, step.micro_batch)
        step.model.train()
        return metrics["loss"]

    def restart(self) -> None:
        """Go back to the start."""
        # Optimizers take over the tensors of a state as they are, and change them.
        optimizer = deepcopy(self._start["optimizer"])
        restore(self.step, self._start | {"optimizer": optimizer})

    @contextmanager
    def injected(self, fault: Fault | None) -> Iterator[None]:
        """Flip the bit now, or as soon as the step inside has a value to flip it in."""
        handle = None if fault is None else self._inject(fault)
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()

    def _inject(self, fault: Fault) -> RemovableHandle | None:
        holders = self.holders(fault.target, fault.part)
        assert holders, f"{fault.part} has no {fault.target}"
        if fault.target == "activation":
            return _flip_output(holders, fault)
        # A place counts through the values of all tensors, so that each is as likely.
        index = int(fault.place * sum(holder.numel() for holder in holders))
        for holder in holders:
            if index < holder.numel():
                break
            index -= holder.numel()
        if fault.target == "gradient":
            return _flip_gradient(holder, index, fault.bit)
        flip_bit_(holder, index, fault.bit)
        return None


def _flip_gradient(parameter: nn.Parameter, index: int, bit: str) -> RemovableHandle:
    """Flip a bit of the gradient of the first micro-batch, once."""

    def flip(parameter: Tensor) -> None:
        assert parameter.grad is not None
        flip_bit_(parameter.grad, index, bit)
        handle.remove()

    handle = parameter.register_post_accumulate_grad_hook(flip)
    return handle


def _flip_output(modules: list[nn.Module], fault: Fault) -> RemovableHandle:
    """Flip a bit of the output of one module in its first forward pass; gradients pass as usual."""
    number, place = divmod(fault.place * len(modules), 1)

    def flip(module: nn.Module, inputs: Any, output: Tensor) -> None:
        flip_bit_(output, int(place * output.numel()), fault.bit)
        handle.remove()

    handle = modules[int(number)].register_forward_hook(flip)
    return handle


def outcome(
    target: Target, course: Course, reference: Course, tolerance: float
) -> dict[str, float]:
    """Return what a fault did to a course, by name.

    Returns:
        ``non_finite`` (0 or 1) and ``harmful``: whether a loss is not a number, or the validation
        loss rose by more than ``tolerance``, relatively. If all losses are numbers also, in nats,
        ``first_change`` of the first training loss that the fault can reach, ``peak_change``, the
        largest, and ``validation_change``; and ``recovery_steps``, those after which training
        losses stay within ``tolerance``, unless the last one is outside.
    """
    if not course.is_finite:
        return {"non_finite": 1.0, "harmful": 1.0}
    changes = np.subtract(course.losses, reference.losses)
    validation = course.validation - reference.validation
    outside = np.flatnonzero(changes > tolerance * np.array(reference.losses))
    recovery = int(outside[-1]) + 1 if len(outside) else 0
    # What only the optimizer reads is in no loss before the next step.
    reached = 0 if target in ("weight", "activation") else 1
    found = {
        "non_finite": 0.0,
        "harmful": float(validation > tolerance * reference.validation),
        "peak_change": float(changes.max()),
        "validation_change": validation,
    }
    if reached < len(changes):
        found["first_change"] = float(changes[reached])
    if recovery < len(changes):
        found["recovery_steps"] = float(recovery)
    return found
