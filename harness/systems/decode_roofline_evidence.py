"""Rooflines of decoding as records: by model, memory bandwidth, batch and context."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveFloat

from harness.config.base import Spec, validate
from harness.errors import UserError, closest
from harness.models.counts import total_parameters
from harness.records.record import Record, record
from harness.systems.decode_roofline import (
    GIGA,
    Device,
    Load,
    Storage,
    Work,
    decode_step,
    draft_step,
)
from harness.systems.decoders import Models, decoders_with_vocabulary

WHERE = "decode_roofline"
BITS = 8
PICO = 1e-12
Share = Annotated[float, Field(ge=0, le=1)]


class Single(Spec):
    """Decoding of one load where memory alone limits."""

    load: Load
    storages: dict[str, Storage]
    bandwidths: list[PositiveFloat] = Field(description="GB/s")


class Served(Spec):
    """Decoding of several loads with one storage."""

    storage: Storage
    loads: list[Load]
    devices: dict[str, Device]
    acceptance: list[Share] = Field(
        description="of drafted tokens, for models with multi-token prediction"
    )


class Statement(Spec):
    """A published speed of one request, whose memory bandwidth is not published."""

    model: str
    tokens_per_second: PositiveFloat
    beside: list[str] = Field(
        default_factory=list, description="models whose speed on the same memory is recorded"
    )


class Stacked(Spec):
    """Memory stacked on the processor, whose bandwidth grows with its capacity."""

    gigabytes_per_second_and_gigabit: PositiveFloat
    picojoules_per_bit: PositiveFloat


def decode_roofline(
    models: Mapping[str, Any],
    single: Mapping[str, Any],
    served: Mapping[str, Any],
    statements: Mapping[str, Any],
    stacked: Mapping[str, Any],
) -> list[Record]:
    """Return the rooflines of decoding.

    Args:
        models: Entries of ``config/models.yaml``: decoders with a vocabulary of their own.
        single: A ``Single``; statements and stacked memory are taken with its load and storages.
        served: A ``Served``.
        statements: By name, a ``Statement``.
        stacked: By name, a ``Stacked``.

    Returns:
        By model, ``batch``, ``context`` and, of a single load, ``storage``:
        ``roofline/bytes_per_step`` by ``part``; ``roofline/tokens_per_second`` of a request by
        ``bandwidth``, or by ``device`` and ``drafting``: none, counted (drafts and their
        verification read weights of their own) or free. By device ``roofline/drafting_speedup``
        (counted) and ``roofline/intensity`` over ``roofline/ridge``, the intensity from which
        computation limits. ``roofline/implied_bandwidth`` of statements, and the speed of other
        models on it. Of stacked memory that holds the weights and nothing else,
        ``roofline/stacked_tokens_per_second`` and ``roofline/joules_per_token`` for reading.

    Raises:
        UserError: If an argument is not as described.
    """
    specs = decoders_with_vocabulary(models, WHERE)
    alone: Single = validate(Single, single, f"{WHERE}: single")
    service: Served = validate(Served, served, f"{WHERE}: served")
    said = validate(dict[str, Statement], statements, f"{WHERE}: statements")
    memories = validate(dict[str, Stacked], stacked, f"{WHERE}: stacked")
    for name in (name for one in said.values() for name in (one.model, *one.beside)):
        if name not in specs:
            raise UserError(f"{WHERE}: statements: found model '{name}'{closest(name, specs)}")
    return [
        *_by_bandwidth(specs, alone),
        *_served(specs, service),
        *_implied(specs, alone, said),
        *_stacked(specs, alone, memories),
    ]


def _by_bandwidth(specs: Models, single: Single) -> Iterator[Record]:
    for storage, model, work, labels in _single(specs, single):
        yield from _bytes(work, model=model, storage=storage, **labels)
        for bandwidth in single.bandwidths:
            seconds = work.seconds(Device(bandwidth=bandwidth))
            yield _speed(1 / seconds, model=model, storage=storage, bandwidth=bandwidth, **labels)


def _single(specs: Models, single: Single) -> Iterator[tuple[str, str, Work, dict[str, int]]]:
    """Yield storage, model and work of every combination, and the load as labels."""
    for storage_name, storage in single.storages.items():
        for name, spec in specs.items():
            work = decode_step(spec, storage, single.load)
            yield storage_name, name, work, single.load.model_dump()


def _served(specs: Models, served: Served) -> Iterator[Record]:
    for name, device in served.devices.items():
        if device.ridge is not None:
            yield record("roofline/ridge", device.ridge, "FLOP/B", device=name)
    for load in served.loads:
        for model, spec in specs.items():
            labels = {"model": model} | load.model_dump()
            work = decode_step(spec, served.storage, load)
            yield from _bytes(work, **labels)
            yield record("roofline/intensity", work.intensity, "FLOP/B", **labels)
            for name, device in served.devices.items():
                seconds, here = work.seconds(device), labels | {"device": name}
                yield _speed(1 / seconds, drafting="none", **here)
                if spec.prediction is not None:
                    drafted = decode_step(spec, served.storage, load, tokens=2).seconds(device)
                    drafted += draft_step(spec, served.storage, load).seconds(device)
                    yield from _drafting(seconds, drafted, served.acceptance, here)


def _drafting(
    plain: float, drafted: float, acceptance: list[float], labels: dict[str, Any]
) -> Iterator[Record]:
    """Yield what drafting one token is worth, from the seconds of a step without and with it."""
    for share in acceptance:
        tokens = 1 + share
        yield _speed(tokens / plain, drafting="free", acceptance=share, **labels)
        yield _speed(tokens / drafted, drafting="counted", acceptance=share, **labels)
        speedup = tokens * plain / drafted
        yield record("roofline/drafting_speedup", speedup, "1", acceptance=share, **labels)


def _implied(specs: Models, single: Single, said: Mapping[str, Statement]) -> Iterator[Record]:
    """Yield the least bandwidth that a published speed needs, and other models' speed on it."""
    for name, statement in said.items():
        for storage, size in single.storages.items():
            labels = {"statement": name, "storage": storage} | single.load.model_dump()
            read = decode_step(specs[statement.model], size, single.load).read
            bandwidth = read * statement.tokens_per_second / GIGA
            yield record("roofline/implied_bandwidth", bandwidth, "GB/s", model=statement.model,
                         **labels)  # fmt: skip
            for other in statement.beside:
                work = decode_step(specs[other], size, single.load)
                yield _speed(1 / work.seconds(Device(bandwidth=bandwidth)), model=other, **labels)


def _stacked(specs: Models, single: Single, memories: Mapping[str, Stacked]) -> Iterator[Record]:
    """Yield speed and energy with memory that is just as large as the weights.

    But for the cache, bytes per weight cancel out in the speed.
    """
    for name, memory in memories.items():
        for storage, model, work, labels in _single(specs, single):
            here = labels | {"memory": name, "model": model, "storage": storage}
            weights = total_parameters(specs[model]) * single.storages[storage].weight
            bandwidth = memory.gigabytes_per_second_and_gigabit * weights * BITS
            yield record("roofline/stacked_tokens_per_second", bandwidth / work.read, "token/s",
                         **here)  # fmt: skip
            energy = work.read * BITS * memory.picojoules_per_bit * PICO
            yield record("roofline/joules_per_token", energy, "J", **here)


def _bytes(work: Work, **labels: Any) -> Iterator[Record]:
    for part in ("weights", "experts", "cache"):
        value = getattr(work, part) / GIGA
        yield record("roofline/bytes_per_step", value, "GB", part=part, **labels)


def _speed(value: float, **labels: Any) -> Record:
    return record("roofline/tokens_per_second", value, "token/s", **labels)
