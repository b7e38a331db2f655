"""Heavy-tailed outliers in random entries of every gradient, to test what an optimizer withstands.

They stand for outliers that come from the data: they are in the gradient before anything is
clipped, and they grow with it.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def add_gradient_outliers(
    parameters: Iterable[nn.Parameter], spec: Mapping[str, Any] | None, seed: int, step: int
) -> None:
    """Add outliers to the gradients of ``parameters``, in place.

    The pattern depends on ``seed``, ``step`` and the shapes alone: it is the same for every
    optimizer, and the same again in a run that was stopped in between. The host never waits.

    Args:
        parameters: All on one device; those without a gradient are skipped.
        spec: ``fraction``, ``scale`` and ``distribution`` as in ``GradientOutliers``; None adds
            nothing.
        seed: Of the run.
        step: Steps taken so far.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if spec is None or not gradients:
        return
    # Hashed, so that these numbers share nothing with other draws from the same seed and step.
    hashed = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)
    generator = torch.Generator(gradients[0].device).manual_seed(int(hashed[0]))
    for gradient in gradients:
        root_mean_square = gradient.float().square().mean().sqrt()
        positions = _positions(gradient.numel(), spec["fraction"], generator)
        values = _draw(spec["distribution"], len(positions), generator)
        noise = torch.zeros(gradient.numel() + 1, device=gradient.device)
        noise[positions] = values * (spec["scale"] * root_mean_square)
        gradient += noise[:-1].view(gradient.shape).to(gradient.dtype)


def _positions(count: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Return which of ``count`` entries are hit, each with probability ``fraction``.

    Drawn by the gaps in between, which costs a thousandth of a draw per entry if one in a thousand
    is hit. The unused places at the end of the tensor hold ``count``.
    """
    expected = count * fraction
    # A length that the host knows; more hits than eight standard deviations do not happen.
    most = math.ceil(expected + 8 * math.sqrt(expected) + 8)
    gaps = torch.empty(most, dtype=torch.int64, device=generator.device)
    return (gaps.geometric_(fraction, generator=generator).cumsum(0) - 1).clamp_(max=count)


def _draw(distribution: str, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` values of ``distribution`` with location 0 and scale 1."""
    first, second = torch.empty(2, count, device=generator.device)
    if distribution == "normal":
        return first.normal_(generator=generator)
    if distribution == "cauchy":
        return first.cauchy_(generator=generator)
    # Two exponential values differ by a Laplace one.
    return first.exponential_(generator=generator) - second.exponential_(generator=generator)
