"""ROOT's outlier filter: soft-thresholding splits off the outliers, and what is left is kept.

With T(x) = sign(x) max(|x| - eps, 0) the kept part is B = M - T(M), which is M clamped to
[-eps, eps] (ROOT, algorithm 1).
"""

import math

import numpy as np
import torch
from torch import Tensor

# Size of a sample, and how many of its standard deviations around a quantile are looked at: where
# the quantile is not among them, once in 400 times, all values are partitioned.
SAMPLED = 2**14
SIGMAS = 3.0
# Values that are compared at a time, so that a core's cache holds them.
BLOCK = 2**16


def clip_(matrix: Tensor, threshold: Tensor | float) -> None:
    """Clamp ``matrix`` to plus and minus ``threshold``."""
    if matrix.device.type == "cpu":
        # Numbers clamp faster than tensors; on a GPU the host would have to wait for one.
        threshold = float(threshold)
    matrix.clamp_(-threshold, threshold)  # type: ignore[arg-type]  # torch takes either


def percentile_threshold(matrix: Tensor, percentile: float) -> Tensor:
    """Return the quantile of the absolute values of ``matrix``, plus 1e-9, in float32.

    Linear interpolation between the two order statistics, as in ROOT's released code. A CPU finds
    them by selection instead of sorting.

    Args:
        matrix: Of any shape.
        percentile: Between 0 and 1.
    """
    values = matrix.flatten().float()
    position = percentile * (len(values) - 1)
    lower = math.floor(position)
    upper = min(lower + 1, len(values) - 1)
    low, high = _order_statistics(values, lower, upper)
    return low + (high - low) * (position - lower) + 1e-9


def _order_statistics(values: Tensor, lower: int, upper: int) -> tuple[Tensor, Tensor]:
    """Return two neighbouring order statistics of the absolute values."""
    if values.device.type == "cpu":
        candidates, skipped = _candidates(values.numpy(), lower, upper)
        candidates.partition(lower - skipped)
        low = candidates[lower - skipped]
        high = candidates[upper - skipped :].min() if upper > lower else low
        return torch.tensor(low), torch.tensor(high)
    # A GPU sorts with all of it; its kthvalue of one row runs on a single multiprocessor.
    ordered = values.abs().sort().values
    return ordered[lower], ordered[upper]


def _candidates(values: np.ndarray, lower: int, upper: int) -> tuple[np.ndarray, int]:
    """Return absolute values among which the wanted ones are, and how many smaller ones there are.

    A sample says where they should lie (Floyd and Rivest, 1975), and counting proves it. NumPy
    compares and counts ten times as fast as it partitions.
    """
    count = len(values)
    if count < 4 * SAMPLED:
        return np.abs(values), 0
    # An odd stride visits all columns of the usual even widths.
    sample = np.abs(values[:: count // SAMPLED | 1])
    quantile = lower / (count - 1)
    centre = round(quantile * (len(sample) - 1))
    margin = math.ceil(SIGMAS * math.sqrt(len(sample) * quantile * (1 - quantile))) + 1
    first, last = max(0, centre - margin), min(len(sample) - 1, centre + margin)
    sample.partition((first, last))
    between, below = [], 0
    for start in range(0, count, BLOCK):
        block = np.abs(values[start : start + BLOCK])
        inside = block >= sample[first]
        below += len(block) - int(np.count_nonzero(inside))
        inside &= block <= sample[last]
        between.append(np.compress(inside, block))
    candidates = np.concatenate(between)
    if below <= lower and upper < below + len(candidates):
        return candidates, below
    return np.abs(values), 0
