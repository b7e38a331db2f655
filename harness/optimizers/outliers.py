"""ROOT's outlier filter: soft-thresholding splits off the outliers, and what is left is kept.

With T(x) = sign(x) max(|x| - eps, 0) the kept part is B = M - T(M), which is M clamped to
[-eps, eps] (ROOT, algorithm 1).
"""

import math

from torch import Tensor


def clip_(matrix: Tensor, threshold: Tensor | float) -> None:
    """Clamp ``matrix`` to plus and minus ``threshold``."""
    if matrix.device.type == "cpu":
        # Numbers clamp faster than tensors; on a GPU the host would have to wait for one.
        threshold = float(threshold)
    matrix.clamp_(-threshold, threshold)  # type: ignore[arg-type]  # torch takes either


def percentile_threshold(matrix: Tensor, percentile: float) -> Tensor:
    """Return the quantile of the absolute values of ``matrix``, plus 1e-9, in float32.

    Linear interpolation between the two order statistics, found by selection instead of sorting,
    as in ROOT's released code.

    Args:
        matrix: Of any shape.
        percentile: Between 0 and 1.
    """
    magnitudes = matrix.flatten().abs().float()
    position = percentile * (len(magnitudes) - 1)
    lower = math.floor(position)
    upper = min(lower + 1, len(magnitudes) - 1)
    low, high = _order_statistics(magnitudes, lower, upper)
    return low + (high - low) * (position - lower) + 1e-9


def _order_statistics(values: Tensor, lower: int, upper: int) -> tuple[Tensor, Tensor]:
    """Return two neighbouring order statistics of ``values``, whose order may change."""
    if values.device.type == "cpu":
        # NumPy's introselect takes a twelfth of the time of torch.kthvalue here.
        values.numpy().partition(lower)
        above = values[upper:]
        return values[lower], above.min() if upper > lower else above[0]
    return values.kthvalue(lower + 1).values, values.kthvalue(upper + 1).values
