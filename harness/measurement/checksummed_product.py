"""What checksums of a matrix product detect on this machine, and what they cost, as records."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product as combinations
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from harness.config.base import Spec, validate
from harness.measurement.checksum_coverage import TARGETS, Factors, Flip, clean_margin, flips
from harness.measurement.optimizer_step import WARMUP_ROUNDS, timed
from harness.numerics.bit_flips import bit_names
from harness.numerics.checksummed import Bound, checksummed_product, extra_operations, product
from harness.numerics.format_evidence import DISTRIBUTIONS
from harness.records.record import Record, record

DType = Literal["float32", "bfloat16"]
Distribution = Literal["normal", "uniform", "laplace", "student_t4", "normal_times_lognormal"]
_Shape = Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]


class Coverage(Spec):
    """Bit flips and clean products."""

    shape: _Shape = Field(description="rows, inner dimension and columns of the product")
    distributions: list[Distribution] = Field(min_length=1, description="of both factors")
    flips_per_bit: PositiveInt = Field(description="of each bit, target, distribution and seed")
    harmful: PositiveFloat = Field(
        description="change of the product, over its Frobenius norm, from which a flip matters"
    )
    clean_products: PositiveInt = Field(description="without a fault, per distribution and seed")
    seeds: list[NonNegativeInt] = Field(min_length=1)


class Cost(Spec):
    """Times of square products, plain and checksummed in turn."""

    sizes: list[PositiveInt] = Field(min_length=1)
    rounds: PositiveInt = Field(description="timed rounds; each takes every product once")


def checksummed_products(
    dtypes: Sequence[str],
    coverage: dict[str, Any],
    cost: dict[str, Any],
    device: torch.device | str,
) -> list[Record]:
    """Return what checksums notice of bit flips, how often they err, and what they cost.

    Args:
        dtypes: Of the factors; products are in float32.
        coverage: A ``Coverage``.
        cost: A ``Cost``.
        device: Where all is computed and timed.

    Returns:
        By dtype, distribution, target, bit, bound and seed: ``checksum/detected``, the share of
        flips; ``checksum/largest_missed``, the largest change by a flip that was overlooked, where
        there was one; ``checksum/harmful``, the share that matters, by all but bound. By bound and
        seed over everything: ``checksum/harmful_detected``, the share of flips that matter;
        ``checksum/false_alarms``, the number of clean products that were refused, and by
        distribution and dtype ``checksum/clean_margin``, their largest difference over what the
        bound allows; ``checksum/located``, the share of detected wrong entries whose place was
        found, and ``checksum/left_over``, the largest change that remains after correction. By
        dtype, size, method and round: ``checksum/time`` in seconds, ``checksum/time_over_plain``
        within the round; ``checksum/extra_operations`` by closed form, over those of the product.

    Raises:
        UserError: If an argument is not as described.
    """
    where = "checksummed_products"
    names = validate(Annotated[list[DType], Field(min_length=1)], dtypes, f"{where}: dtypes")
    faults = validate(Coverage, coverage, f"{where}: coverage")
    times = validate(Cost, cost, f"{where}: cost")
    device = torch.device(device)
    records: list[Record] = []
    for seed in faults.seeds:
        records += _coverage(names, faults, seed, device)
    for name, size in combinations(names, times.sizes):
        records += _cost(name, size, times.rounds, device)
    return records


def bounds_of(dtype: str, device: torch.device) -> list[Bound]:
    """Return the bounds that hold; tensor cores cut off, so roundings have no mean of zero."""
    if dtype == "bfloat16" and device.type == "cuda":
        return ["deterministic"]
    return ["deterministic", "probabilistic"]


def _coverage(
    dtypes: Sequence[str], options: Coverage, seed: int, device: torch.device
) -> Iterator[Record]:
    every: dict[Bound, list[Flip]] = {}
    alarms: dict[Bound, int] = {}
    for dtype, distribution in combinations(dtypes, options.distributions):
        # A stream for each, so that one more of them changes nothing for the others.
        stream = [seed, *dtype.encode(), *distribution.encode()]
        random = np.random.default_rng(stream)
        bounds = bounds_of(dtype, device)
        labels: dict[str, Any] = {"dtype": dtype, "distribution": distribution, "seed": seed}
        factors = _draw(dtype, distribution, options.shape, random, device)
        found = list(flips(factors, bounds, options.flips_per_bit, random))
        yield from _by_bit(found, factors, bounds, options.harmful, labels)
        margins: dict[Bound, list[float]] = {bound: [] for bound in bounds}
        for _ in range(options.clean_products):
            clean = _draw(dtype, distribution, options.shape, random, device)
            for bound in bounds:
                margins[bound].append(clean_margin(clean, bound))
        for bound, values in margins.items():
            every[bound] = every.get(bound, []) + found
            refused = sum(not value <= 1 for value in values)
            alarms[bound] = alarms.get(bound, 0) + refused
            yield record("checksum/clean_margin", max(values), "1", bound=bound, **labels)
    for bound, those in every.items():
        yield from _overall(those, bound, options.harmful, seed)
        yield record("checksum/false_alarms", alarms[bound], "1", bound=bound, seed=seed)


def _draw(
    dtype: str,
    distribution: str,
    shape: Sequence[int],
    random: np.random.Generator,
    device: torch.device,
) -> Factors:
    rows, inner, columns = shape
    left, right = (
        torch.from_numpy(DISTRIBUTIONS[distribution](random, size)).to(getattr(torch, dtype))
        for size in ((rows, inner), (inner, columns))
    )
    return Factors.of(left.to(device), right.to(device))


def _by_bit(
    found: Sequence[Flip],
    factors: Factors,
    bounds: Sequence[Bound],
    harmful: float,
    labels: dict[str, Any],
) -> Iterator[Record]:
    for target in TARGETS:
        words = factors.left_MK if target == "input" else factors.product_MN
        for bit in bit_names(words.dtype):
            those = [flip for flip in found if (flip.target, flip.bit) == (target, bit)]
            place = labels | {"target": target, "bit": bit}
            share = sum(flip.change > harmful for flip in those) / len(those)
            yield record("checksum/harmful", share, "1", **place)
            for bound in bounds:
                missed = [flip.change for flip in those if not flip.detected[bound]]
                share = 1 - len(missed) / len(those)
                yield record("checksum/detected", share, "1", bound=bound, **place)
                if missed:
                    yield record("checksum/largest_missed", max(missed), "1", bound=bound, **place)


def _overall(found: Sequence[Flip], bound: Bound, harmful: float, seed: int) -> Iterator[Record]:
    matter = [flip.detected[bound] for flip in found if flip.change > harmful]
    entries = [flip for flip in found if flip.target != "input" and flip.detected[bound]]
    located = [flip.left_over[bound] for flip in entries if flip.located[bound]]
    if matter:
        share = sum(matter) / len(matter)
        yield record("checksum/harmful_detected", share, "1", bound=bound, seed=seed)
    if entries:
        yield record("checksum/located", len(located) / len(entries), "1", bound=bound, seed=seed)
    if located:
        assert all(map(math.isfinite, located))
        yield record("checksum/left_over", max(located), "1", bound=bound, seed=seed)


def _cost(dtype: str, size: int, rounds: int, device: torch.device) -> Iterator[Record]:
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(size, size, generator=generator, device=device).to(getattr(torch, dtype))
        for _ in range(2)
    )
    labels = {"dtype": dtype, "size": size}
    extra = extra_operations(size, size, size) / (2 * size**3)
    yield record("checksum/extra_operations", extra, "1", **labels)
    steps: dict[str, Callable[[], object]] = {
        "plain": partial(product, left, right),
        "checksummed": partial(checksummed_product, left, right),
    }
    for round_ in range(-WARMUP_ROUNDS, rounds):
        seconds = {name: timed(step, device) for name, step in steps.items()}
        if round_ < 0:
            continue
        for name, time in seconds.items():
            yield record("checksum/time", time, "s", method=name, round=round_, **labels)
        ratio = seconds["checksummed"] / seconds["plain"]
        yield record("checksum/time_over_plain", ratio, "1", round=round_, **labels)
