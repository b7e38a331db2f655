"""Failures of many devices, and what checkpoints and spare devices are worth against them.

Devices fail independently and at a constant rate. Closed forms by Young (CACM 17, 1974) and Daly
(Future Generation Computer Systems 22, 2006); all times are in one unit.
"""

import math

from pydantic import NonNegativeFloat, PositiveFloat
from scipy import special, stats

from harness.config.base import Spec


class Recovery(Spec):
    """What a job loses besides the work since its last checkpoint."""

    checkpoint: PositiveFloat
    restart: NonNegativeFloat


def any_failure(probability: float, devices: int) -> float:
    """Return the probability that one device or more fails: ``1 - (1 - p)^N``.

    Args:
        probability: That a given device fails, below 1.
        devices: N.
    """
    return -math.expm1(devices * math.log1p(-probability))


def mean_time_between_failures(of_a_device: float, devices: int) -> float:
    """Return the mean time until any of the devices fails: their rates add up."""
    return of_a_device / devices


def young_interval(checkpoint: float, between_failures: float) -> float:
    """Return Young's best time of work between checkpoints, ``sqrt(2 delta M)``."""
    return math.sqrt(2 * checkpoint * between_failures)


def daly_interval(checkpoint: float, between_failures: float) -> float:
    """Return Daly's estimate of higher order of the best time of work between checkpoints.

    ``sqrt(2 delta M) (1 + sqrt(delta / 2M) / 3 + delta / 18M) - delta`` while ``delta < 2M``, and
    ``M`` beyond.
    """
    ratio = checkpoint / (2 * between_failures)
    if ratio >= 1:
        return between_failures
    series = 1 + math.sqrt(ratio) / 3 + ratio / 9
    return young_interval(checkpoint, between_failures) * series - checkpoint


def goodput(interval: float, recovery: Recovery, between_failures: float) -> float:
    """Return the share of time that is work that lasts, by Daly's complete model.

    A stretch of work and its checkpoint have to end without a failure, and so has every restart:
    ``tau / (M exp(R / M) (exp((tau + delta) / M) - 1))``.

    Args:
        interval: tau, work between checkpoints.
        recovery: Its checkpoint delta and restart R.
        between_failures: M, of the whole job.
    """
    stretch = (interval + recovery.checkpoint) / between_failures
    # Exponents of a job that never gets through overflow; its share is zero.
    if stretch + recovery.restart / between_failures > math.log(1e300):
        return 0.0
    attempts = math.exp(recovery.restart / between_failures) * math.expm1(stretch)
    return interval / (between_failures * attempts)


def best_interval(recovery: Recovery, between_failures: float) -> float:
    """Return the exact optimum of ``goodput``.

    The root of ``(1 - x) exp(x) = exp(-delta / M)`` for ``x = tau / M``, by Lambert's W: the
    derivative of Daly's complete model, which he expands in a series.
    """
    argument = -math.exp(-recovery.checkpoint / between_failures - 1)
    return between_failures * (1 + special.lambertw(argument).real)


def spares_needed(probability: float, devices: int, confidence: float) -> int:
    """Return the fewest spare devices with which ``devices`` of all work, in confidence.

    Spares fail like the others: the failures that are met before so many devices work have a
    negative binomial distribution, of which this is a quantile.

    Args:
        probability: That a device fails before it can be repaired, below 1.
        devices: That the job needs.
        confidence: Least probability that enough work, below 1.
    """
    return int(stats.nbinom.ppf(confidence, devices, 1 - probability))
