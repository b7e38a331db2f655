"""All that is counted from the configurations of models: cache, operations, parameters, nodes.

The numbers of arXiv 2505.09343, tables 1 and 2 and section 4.3, and of the reports before it. Each
has a closed form; cache and parameters are counted from the built model's tensors too.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from harness.config.base import Spec, validate
from harness.config.decoder_schema import DecoderSpec
from harness.errors import UserError, closest
from harness.models.counts import (
    activated_parameters,
    count_parameters,
    matrix_parameters,
    total_parameters,
)
from harness.models.flops import decoder_training_flops
from harness.records.record import Record, record
from harness.systems.built import on_meta
from harness.systems.cache_costs import key_value_cache
from harness.systems.decoders import Models, decoders_with_vocabulary
from harness.systems.node_routing import Routing, touched_nodes
from harness.systems.printed import Table, ratios

SECONDS_PER_DAY = 86400
Attention = Literal["causal", "full"]


class Throughput(Spec):
    """The speed of a training run, from which its operations per token follow."""

    model: str
    tokens_per_day: PositiveFloat
    devices: PositiveInt
    tflops: dict[Attention, PositiveFloat] = Field(description="per device, by what is counted")


class TrainingTable(Table):
    """Printed operations per token, in GFLOP."""

    sequence_length: PositiveInt
    throughput: list[Throughput] = Field(default_factory=list)


def model_costs(
    models: Mapping[str, Any],
    cache: Mapping[str, Any],
    training: Mapping[str, Any],
    routing: Mapping[str, Any],
) -> list[Record]:
    """Return everything that is counted from the configurations of ``models``.

    Args:
        models: Entries of ``config/models.yaml``: decoders with a vocabulary of their own.
        cache: A ``Table`` of bytes per token.
        training: A ``TrainingTable``.
        routing: A ``Routing``.

    Raises:
        UserError: If an argument is not as described.
    """
    specs = decoders_with_vocabulary(models, "model_costs")
    cached: Table = validate(Table, cache, "model_costs: cache")
    trained: TrainingTable = validate(TrainingTable, training, "model_costs: training")
    routed: Routing = validate(Routing, routing, "model_costs: routing")
    _known(cached, specs, "model_costs: cache")
    _known(trained, specs, "model_costs: training", (run.model for run in trained.throughput))
    return [
        *key_value_cache(specs, cached),
        *training_compute(specs, trained),
        *parameter_counts(specs),
        *touched_nodes(specs, routed),
    ]


def _known(table: Table, models: Models, where: str, more: Iterable[str] = ()) -> None:
    for name in (*table.printed, *(name for pair in table.ratios for name in pair), *more):
        if name not in models:
            raise UserError(f"{where}: found model '{name}'{closest(name, models)}")


def training_compute(models: Models, table: TrainingTable) -> Iterator[Record]:
    """Yield training operations per token and their ratios, by how attention is counted.

    ``attention`` is causal (the lower triangle) or full (the square). The closed form is that of
    ``decoder_training_flops``; throughput is what the printed speed of a run comes to. Printed
    numbers and ratios are taken as causal and without multi-token prediction.

    Args:
        models: By name.
        table: Printed operations, and speeds.
    """
    causal = {name: _gflop_per_token(spec, table) for name, spec in models.items()}
    for name, spec in models.items():
        yield _operations(name, causal[name], "causal", "closed_form")
        yield _operations(name, _gflop_per_token(spec, table, causal=False), "full", "closed_form")
        if spec.prediction is not None:
            value = _gflop_per_token(spec, table, prediction=True)
            yield _operations(name, value, "causal", "closed_form", prediction="counted")
    for name, value in table.printed.items():
        yield _operations(name, value, "causal", "printed")
    for run in table.throughput:
        seconds = SECONDS_PER_DAY / run.tokens_per_day
        for attention, tflops in run.tflops.items():
            value = 1e3 * tflops * run.devices * seconds
            yield _operations(run.model, value, attention, "throughput")
    for method, values in (("closed_form", causal), ("printed", table.printed)):
        for first, over, ratio in ratios(table, values, values):
            yield record("training/ratio", ratio, "1", model=first, over=over, method=method)


def _gflop_per_token(
    spec: DecoderSpec, table: TrainingTable, *, causal: bool = True, prediction: bool = False
) -> float:
    length = table.sequence_length
    return decoder_training_flops(spec, length, causal=causal, prediction=prediction) / length / 1e9


def _operations(
    model: str, value: float, attention: Attention, method: str, prediction: str = "left out"
) -> Record:
    return record("training/flops_per_token", value, "GFLOP/token", model=model,
                  attention=attention, method=method, prediction=prediction)  # fmt: skip


def parameter_counts(models: Models) -> Iterator[Record]:
    """Yield parameters in billions: total, activated, in matrix products, and by part.

    Multi-token prediction is in none of them but the part of that name.
    """
    for name, spec in models.items():
        parts = count_parameters(spec)
        active = activated_parameters(spec)
        counted = sum(parameter.numel() for parameter in on_meta(spec).parameters())
        lookup = 0 if spec.tie_word_embeddings else parts["embedding"].total
        values: list[tuple[str, int, dict[str, str]]] = [
            ("total", total_parameters(spec), {"method": "closed_form"}),
            ("total", counted, {"method": "counted"}),
            ("activated", active, {"embedding": "left out"}),
            ("activated", active + lookup, {"embedding": "counted"}),
            ("in_matrix_products", matrix_parameters(spec), {}),
        ]
        values += [("of_part", count.total, {"part": part}) for part, count in parts.items()]
        for metric, value, labels in values:
            yield record(f"parameters/{metric}", value / 1e9, "B parameters", model=name, **labels)
