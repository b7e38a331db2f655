"""Means over seeds and paired differences, with intervals that deserve their name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
# Below this many pairs the percentile bootstrap covers far less than it says (three pairs: about
# 75 % instead of 95 %), so Student's t is used; from here on the bootstrap, without normality.
BOOTSTRAP_FROM = 10


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: Of the values.
        low: Lower end of the 95 % interval; NaN for a single value.
        high: Upper end of the 95 % interval; NaN for a single value.
        count: Number of values or pairs.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def has_spread(self) -> bool:
        """Whether the values say anything about their own spread.

        A single value does not, and neither do a few equal ones: scores that count something, such
        as accuracies, can agree by chance. An infinite one, of runs that diverged, is beyond that.
        """
        return self.count > 1 and (self.high > self.low or math.isinf(self.mean))

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Return mean and interval of one number per seed, by Student's t or, from ten on, bootstrap.

    Raises:
        ValueError: If there are no values.
    """
    data = np.asarray(values, dtype=float)
    if data.size == 0:
        raise ValueError("no values to take a mean of")
    mean = float(data.mean())
    if data.size == 1:
        return Estimate(mean, float("nan"), float("nan"), 1)
    # Equal up to rounding: there is no spread to estimate, and the methods below divide by it.
    if np.ptp(data) <= 1e-12 * np.abs(data).max():
        return Estimate(mean, mean, mean, data.size)
    if data.size >= BOOTSTRAP_FROM:
        interval = stats.bootstrap((data,), np.mean, confidence_level=CONFIDENCE, method="BCa",
                                   rng=np.random.default_rng(0)).confidence_interval  # fmt: skip
    else:
        interval = stats.ttest_1samp(data, 0).confidence_interval(CONFIDENCE)
    return Estimate(mean, float(interval.low), float(interval.high), data.size)


def paired_difference(first: dict[int, float], second: dict[int, float]) -> Estimate | None:
    """Return the mean of ``first - second`` over the seeds that both have, or None without any."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    return mean_over_seeds([first[seed] - second[seed] for seed in seeds])
