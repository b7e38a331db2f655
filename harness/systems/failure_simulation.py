"""Jobs whose devices fail one by one, simulated without the closed forms of ``failures``.

Shape suffixes: T trials, N devices.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.systems.failures import Recovery

# Random numbers drawn at a time.
DRAWS = 1 << 20
Floats = NDArray[np.float64]


@dataclass
class Cluster:
    """Devices with exponential lifetimes, renewed after each failure.

    Attributes:
        devices: Their number.
        lifetime: Mean of each.
        generator: Of the lifetimes.
    """

    devices: int
    lifetime: float
    generator: np.random.Generator

    def first_failures(self, trials: int) -> Floats:
        """Return the time until the first of the devices fails, shape (trials,)."""
        step = max(1, DRAWS // self.devices)
        sizes = [min(step, trials - start) for start in range(0, trials, step)]
        return np.concatenate([
            self.generator.exponential(self.lifetime, (size, self.devices)).min(axis=1)
            for size in sizes
        ])  # fmt: skip


def failed_share(
    probability: float, devices: int, trials: int, generator: np.random.Generator
) -> float:
    """Return the share of trials in which a device fails, each of them drawn.

    Args:
        probability: That a given device fails.
        devices: Their number.
        trials: Their number.
        generator: Of the draws.
    """
    step = max(1, DRAWS // devices)
    hit = 0
    for start in range(0, trials, step):
        draws_TN = generator.random((min(step, trials - start), devices))
        hit += int((draws_TN < probability).any(axis=1).sum())
    return hit / trials


def simulated_goodput(
    interval: float, recovery: Recovery, cluster: Cluster, stretches: int
) -> float:
    """Return the share of time that is work that lasts, over so many stretches of work.

    Every stretch is tried until it ends with its checkpoint; every failure costs the time that was
    spent, and restarts that are tried until one ends.

    Args:
        interval: Work between checkpoints.
        recovery: Times of a checkpoint and a restart.
        cluster: The devices.
        stretches: Their number.
    """
    length = interval + recovery.checkpoint
    pending, spent = stretches, 0.0
    while pending:
        first_T = cluster.first_failures(pending)
        pending = int((first_T < length).sum())
        spent += float(np.minimum(first_T, length).sum())
        spent += _restarts(recovery.restart, pending, cluster)
    return stretches * interval / spent


def _restarts(length: float, number: int, cluster: Cluster) -> float:
    """Return the time until so many restarts have ended, those that failed included."""
    spent = 0.0
    while number and length:
        first_T = cluster.first_failures(number)
        spent += float(np.minimum(first_T, length).sum())
        number = int((first_T < length).sum())
    return spent
