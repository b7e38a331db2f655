"""Times of single optimizer steps, all optimizers in turn on the same parameter shapes.

Machines drift: their clocks, caches and neighbours change within seconds. So every round times each
optimizer once, and comparisons are ratios within a round.
"""

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

WARMUP_ROUNDS = 2


def gaussian_gradient(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Return independent standard normal entries."""
    return torch.empty_like(parameter).normal_(generator=generator)


def time_optimizer_steps(
    optimizers: Mapping[str, Callable[[nn.Module], Any]],
    model: nn.Module,
    rounds: int,
    draw: Callable[[Tensor, torch.Generator], Tensor] = gaussian_gradient,
) -> list[dict[str, Any]]:
    """Return the time of one step per optimizer and round, as records.

    All optimizers step the same parameters, whose values do not matter: one copy for each would not
    fit a GPU that fits them all in turn.

    Args:
        optimizers: Builders by name.
        model: Supplies parameters, their roles and the device; stays as it is.
        rounds: Timed rounds, after untimed ones that pay for allocation and compilation.
        draw: Returns a gradient for a parameter; gradients stay the same over all rounds.
    """
    stepped = with_gradients(model, draw)
    built = {name: build(stepped).step for name, build in optimizers.items()}
    records = []
    for round_ in range(-WARMUP_ROUNDS, rounds):
        for name, step in built.items():
            seconds = timed(step, next(model.parameters()).device)
            if round_ >= 0:
                records.append({"optimizer": name, "metric": "time/optimizer_step",
                                "value": seconds, "unit": "s",
                                "labels": {"round": round_}})  # fmt: skip
    return records


def with_gradients(
    model: nn.Module, draw: Callable[[Tensor, torch.Generator], Tensor] = gaussian_gradient
) -> nn.Module:
    """Return a copy of ``model`` with gradients."""
    own = deepcopy(model)
    generator = torch.Generator(next(own.parameters()).device).manual_seed(0)
    for parameter in own.parameters():
        parameter.grad = draw(parameter, generator)
    return own


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that ``step`` takes, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
