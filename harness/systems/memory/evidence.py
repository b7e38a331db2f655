"""Memory of training and inference by part and kind, as records."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from harness.config.base import Spec, validate
from harness.config.decoder_schema import DecoderSpec
from harness.config.yaml_file import merge
from harness.errors import UserError, closest
from harness.models.counts import Part
from harness.records.record import Record, record
from harness.systems.decoders import decoders_with_vocabulary
from harness.systems.memory.cases import InferenceCase, TrainingCase
from harness.systems.memory.inference import cache_per_token, inference_memory
from harness.systems.memory.training import Kind, Memory, training_memory

GIGABYTE = 1e9
Case = TrainingCase | InferenceCase
Statistic = Literal["largest", "mean"]


class Ratio(Spec):
    """Two cases that are compared in the mean over their devices."""

    first: str
    over: str
    kind: Kind
    part: Part | None = Field(None, description="none: all of them")


def model_memory(
    models: Mapping[str, Any],
    training: Mapping[str, Any],
    inference: Mapping[str, Any],
    ratios: Sequence[Mapping[str, Any]],
) -> list[Record]:
    """Return what every device of a deployment holds, by part of the model and kind of content.

    Args:
        models: Entries of ``config/models.yaml``: decoders with a vocabulary of their own.
        training: By name: a ``TrainingCase``, or ``variant_of`` another and what differs.
        inference: By name: an ``InferenceCase``, likewise.
        ratios: Each a ``Ratio``.

    Returns:
        ``memory/of`` in GB by part and kind, of the device that holds most and in the mean;
        ``memory/total`` likewise; ``memory/rank`` by pipeline rank; ``memory/device``, what a
        device has, and ``memory/share``, how much of it the fullest one uses;
        ``memory/largest_micro_batch``, ``memory/largest_batch`` and ``memory/largest_context``
        that fit, 0 if nothing does; ``memory/ratio``.

    Raises:
        UserError: If an argument is not as described, or a model cannot be cut like that.
    """
    where = "model_memory"
    specs = decoders_with_vocabulary(models, where)
    trained = _cases(TrainingCase, training, f"{where}: training")
    served = _cases(InferenceCase, inference, f"{where}: inference")
    compared = validate(list[Ratio], ratios, f"{where}: ratios")
    cases: dict[str, Case] = {**trained, **served}
    for name in trained.keys() & served.keys():
        raise UserError(f"{where}: inference: '{name}' is among training too")
    memories = {name: _memories(specs, name, case) for name, case in cases.items()}
    records: list[Record] = []
    for name, case in cases.items():
        records += _of_case(specs[case.model], name, case, memories[name])
    for ratio in compared:
        records.append(_ratio(ratio, memories, f"{where}: ratios"))
    return records


def _cases(kind: Any, cases: Mapping[str, Any], where: str) -> Any:
    raw = validate(dict[str, dict[str, Any]], cases, where)
    return {
        name: validate(kind, _laid_over_base(raw, name, where), f"{where}.{name}") for name in raw
    }


def _laid_over_base(
    raw: Mapping[str, dict[str, Any]], name: str, where: str, above: tuple[str, ...] = ()
) -> dict[str, Any]:
    own = {key: value for key, value in raw[name].items() if key != "variant_of"}
    base = raw[name].get("variant_of")
    if base is None:
        return own
    if base not in raw:
        raise UserError(f"{where}.{name}.variant_of: found '{base}'{closest(str(base), raw)}")
    if base in (name, *above):
        raise UserError(f"{where}.{name}.variant_of: '{base}' is a variant of '{name}'")
    return merge(_laid_over_base(raw, base, where, (name, *above)), own)


def _memories(specs: Mapping[str, DecoderSpec], name: str, case: Case) -> list[Memory]:
    """Return what a device of every pipeline rank holds."""
    phase = _phase(case)
    where = f"model_memory: {phase}.{name}"
    if case.model not in specs:
        raise UserError(f"{where}.model: found '{case.model}'{closest(case.model, specs)}")
    if isinstance(case, TrainingCase):
        return training_memory(specs[case.model], case, where)
    return [inference_memory(specs[case.model], case, where)]


def _phase(case: Case) -> str:
    return "training" if isinstance(case, TrainingCase) else "inference"


def _of_case(
    spec: DecoderSpec, name: str, case: Case, memories: Sequence[Memory]
) -> Iterator[Record]:
    labels = {"model": case.model, "case": name, "phase": _phase(case)}
    fullest = max(memories, key=total)
    of: dict[Statistic, Memory] = {"largest": fullest, "mean": mean(memories)}
    for statistic, memory in of.items():
        yield record("memory/total", total(memory) / GIGABYTE, "GB", statistic=statistic, **labels)
        for (part, kind), size in memory.items():
            yield record("memory/of", size / GIGABYTE, "GB", statistic=statistic, part=part,
                         kind=kind, **labels)  # fmt: skip
    for rank, memory in enumerate(memories):
        yield record("memory/rank", total(memory) / GIGABYTE, "GB", rank=rank, **labels)
    yield record("memory/device", case.device_memory, "GB", devices=case.layout.devices, **labels)
    share = total(fullest) / (case.device_memory * GIGABYTE)
    yield record("memory/share", share, "1", **labels)
    for metric, value, unit in _largest(spec, case, memories):
        yield record(f"memory/{metric}", value, unit, **labels)


def _largest(
    spec: DecoderSpec, case: Case, memories: Sequence[Memory]
) -> Iterator[tuple[str, int, str]]:
    """Yield the largest sizes that fit, all else equal.

    Activations are taken to grow with the micro-batch, cache with batch and context.
    """
    room = case.device_memory * GIGABYTE
    if isinstance(case, TrainingCase):
        fits = min(_times(memory, "activations", room) for memory in memories)
        yield "largest_micro_batch", math.floor(fits * case.micro_batch), "sequences"
        return
    free = max(0.0, room - total(memories[0]) + _of_kind(memories[0], "cache"))
    tokens = free / cache_per_token(spec, case)
    yield "largest_batch", math.floor(tokens / case.context), "sequences"
    yield "largest_context", math.floor(tokens / case.batch), "tokens"


def _times(memory: Memory, kind: Kind, room: float) -> float:
    """Return how many times as much of a kind there is room for."""
    grows = _of_kind(memory, kind)
    return max(0.0, room - total(memory) + grows) / grows


def total(memory: Memory) -> float:
    """Return all bytes of a device."""
    return sum(memory.values())


def _of_kind(memory: Memory, kind: Kind, part: Part | None = None) -> float:
    return sum(size for (its_part, its_kind), size in memory.items()
               if its_kind == kind and part in (None, its_part))  # fmt: skip


def mean(memories: Sequence[Memory]) -> Memory:
    """Return the mean over pipeline ranks, of which all have equally many devices."""
    keys = dict.fromkeys(key for memory in memories for key in memory)
    return {key: sum(memory.get(key, 0.0) for memory in memories) / len(memories) for key in keys}


def _ratio(ratio: Ratio, memories: Mapping[str, list[Memory]], where: str) -> Record:
    for name in (ratio.first, ratio.over):
        if name not in memories:
            raise UserError(f"{where}: found case '{name}'{closest(name, memories)}")
    sizes = [
        _of_kind(mean(memories[name]), ratio.kind, ratio.part)
        for name in (ratio.first, ratio.over)
    ]  # fmt: skip
    if not sizes[1]:
        raise UserError(f"{where}: '{ratio.over}' holds no {ratio.kind} of {ratio.part or 'any'}")
    labels = {"first": ratio.first, "over": ratio.over, "kind": ratio.kind,
              "part": ratio.part or "all"}  # fmt: skip
    return record("memory/ratio", sizes[0] / sizes[1], "1", **labels)
