"""Learning-rate schedules as factors of the peak learning rate."""

import math
from collections.abc import Mapping
from typing import Any


def learning_rate_factor(schedule: Mapping[str, Any], step: int, steps: int) -> float:
    """Return the learning rate of ``step`` divided by the peak learning rate.

    Args:
        schedule: ``warmup_cosine`` (linear warm-up, half a cosine to ``final``; Loshchilov and
            Hutter, arXiv 1608.03983) or ``warmup_stable_decay`` (linear warm-up, constant, linear
            decay to ``final``; Hu et al., arXiv 2404.06395). ``warmup`` and ``decay`` are shares
            of all steps.
        step: Index of the step that is about to be taken, from 0.
        steps: Number of steps in all.
    """
    warmup = round(schedule["warmup"] * steps)
    if step < warmup:
        return (step + 1) / warmup
    final = schedule["final"]
    if schedule["kind"] == "warmup_cosine":
        progress = (step - warmup) / max(1, steps - warmup)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    decay = max(1, round(schedule["decay"] * steps))
    return final + (1 - final) * min(1.0, (steps - step) / decay)
