"""Failures by the number of devices, as records: arXiv 2505.09343, section 6.1.

The paper says that the probability of a failure grows with the size of a job, and publishes no
rate. All rates here are assumptions that are swept.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from harness.config.base import Spec, validate
from harness.records.record import Record, record
from harness.systems.failure_simulation import Cluster, failed_share, simulated_goodput
from harness.systems.failures import (
    Recovery,
    any_failure,
    best_interval,
    daly_interval,
    goodput,
    mean_time_between_failures,
    spares_needed,
    young_interval,
)

WHERE = "failures"
Probability = Annotated[float, Field(gt=0, lt=1)]
Devices = Annotated[list[PositiveInt], Field(min_length=1)]


class Probabilities(Spec):
    """Whether any device fails in a while."""

    devices: Devices
    probabilities: list[Probability] = Field(description="that a given device fails in that while")
    trials: PositiveInt = Field(description="simulated, per seed")
    seeds: list[NonNegativeInt]


class Checkpoints(Spec):
    """A job that restarts from checkpoints; hours."""

    devices: Devices
    lifetimes: list[PositiveFloat] = Field(description="mean hours until a given device fails")
    recoveries: dict[str, Recovery] = Field(min_length=1)
    intervals: list[PositiveFloat] = Field(
        description="of work, over the best; what other ones cost, on the last lifetime and devices"
    )
    stretches: PositiveInt = Field(description="simulated, per seed")
    seeds: list[NonNegativeInt]


class Spares(Spec):
    """Devices beyond those that a job needs."""

    devices: Devices
    probabilities: list[Probability] = Field(description="that a device fails before its repair")
    confidence: Probability


def failures(
    probability: Mapping[str, Any], checkpoints: Mapping[str, Any], spares: Mapping[str, Any]
) -> list[Record]:
    """Return what failures do to jobs of many devices, by closed form and simulated.

    Args:
        probability: A ``Probabilities``.
        checkpoints: A ``Checkpoints``.
        spares: A ``Spares``.

    Returns:
        ``failures/probability`` that any device fails, by ``devices`` and ``per_device``;
        ``failures/time_between`` in hours; ``failures/interval`` in hours, the best by ``method``
        ``exact``, ``young`` and ``daly``; ``failures/goodput`` with it, and by ``over_best`` with
        others; ``failures/spares`` and their share of the devices.

    Raises:
        UserError: If an argument is not as described.
    """
    chances: Probabilities = validate(Probabilities, probability, f"{WHERE}: probability")
    jobs: Checkpoints = validate(Checkpoints, checkpoints, f"{WHERE}: checkpoints")
    more: Spares = validate(Spares, spares, f"{WHERE}: spares")
    return [*_probabilities(chances), *_checkpoints(jobs), *_spares(more)]


def _probabilities(chances: Probabilities) -> Iterator[Record]:
    for per_device in chances.probabilities:
        for devices in chances.devices:
            labels = {"devices": devices, "per_device": per_device}
            value = any_failure(per_device, devices)
            yield record("failures/probability", value, "1", method="closed_form", **labels)
            for seed in chances.seeds:
                generator = np.random.default_rng(seed)
                value = failed_share(per_device, devices, chances.trials, generator)
                yield record("failures/probability", value, "1", method="simulated", seed=seed,
                             **labels)  # fmt: skip


def _checkpoints(jobs: Checkpoints) -> Iterator[Record]:
    for lifetime in jobs.lifetimes:
        for devices in jobs.devices:
            between = mean_time_between_failures(lifetime, devices)
            labels = {"lifetime": lifetime, "devices": devices}
            yield record("failures/time_between", between, "h", method="closed_form", **labels)
            for name, recovery in jobs.recoveries.items():
                yield from _intervals(recovery, between, labels | {"recovery": name})
                cluster = labels | {"recovery": name}
                yield from _simulated(jobs, recovery, lifetime, devices, cluster)
    yield from _other_intervals(jobs)


def _intervals(recovery: Recovery, between: float, labels: dict[str, Any]) -> Iterator[Record]:
    """Yield best intervals, and the goodput of each by the complete model."""
    for method, interval in (
        ("exact", best_interval(recovery, between)),
        ("young", young_interval(recovery.checkpoint, between)),
        ("daly", daly_interval(recovery.checkpoint, between)),
    ):
        yield record("failures/interval", interval, "h", interval=method, **labels)
        share = goodput(interval, recovery, between)
        yield record("failures/goodput", share, "1", interval=method, method="closed_form",
                     **labels)  # fmt: skip


def _simulated(
    jobs: Checkpoints, recovery: Recovery, lifetime: float, devices: int, labels: dict[str, Any]
) -> Iterator[Record]:
    interval = best_interval(recovery, mean_time_between_failures(lifetime, devices))
    for seed in jobs.seeds:
        cluster = Cluster(devices, lifetime, np.random.default_rng(seed))
        share = simulated_goodput(interval, recovery, cluster, jobs.stretches)
        yield record("failures/goodput", share, "1", interval="exact", method="simulated",
                     seed=seed, **labels)  # fmt: skip


def _other_intervals(jobs: Checkpoints) -> Iterator[Record]:
    lifetime, devices = jobs.lifetimes[-1], jobs.devices[-1]
    between = mean_time_between_failures(lifetime, devices)
    for name, recovery in jobs.recoveries.items():
        best = best_interval(recovery, between)
        for factor in jobs.intervals:
            share = goodput(factor * best, recovery, between)
            yield record("failures/goodput", share, "1", over_best=factor, method="closed_form",
                         lifetime=lifetime, devices=devices, recovery=name)  # fmt: skip


def _spares(spares: Spares) -> Iterator[Record]:
    for probability in spares.probabilities:
        for devices in spares.devices:
            labels = {"devices": devices, "per_device": probability,
                      "confidence": spares.confidence}  # fmt: skip
            number = spares_needed(probability, devices, spares.confidence)
            yield record("failures/spares", number, "devices", **labels)
            yield record("failures/spare_share", number / devices, "1", **labels)
