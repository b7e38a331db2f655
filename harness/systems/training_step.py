"""Whether a published training step agrees with itself: arXiv 2505.09343, table 4.

Tokens per day, seconds per step, operations per second and their share of the peak are printed
side by side. Each follows from others by arithmetic, and operations from the model's configuration.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from harness.config.base import Spec, validate
from harness.config.decoder_schema import DecoderSpec
from harness.errors import UserError, closest
from harness.models.flops import decoder_training_flops
from harness.records.record import Record, record

WHERE = "training_step"
SECONDS_PER_DAY = 86400
BILLION, TERA, PERCENT = 1e9, 1e12, 100
UNITS = {
    "tokens_per_day": "B tokens/day",
    "time_per_step": "s",
    "bubble_share": "1",
    "tflops_causal": "TFLOPS",
    "tflops_full": "TFLOPS",
    "mfu_causal": "%",
    "mfu_full": "%",
}


class Run(Spec):
    """What is the same on every network."""

    model: str
    sequence_length: PositiveInt
    sequences_per_step: PositiveInt
    devices: PositiveInt
    peak_tflops: PositiveFloat = Field(description="of a device, in the type that MFU is held to")

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step."""
        return self.sequences_per_step * self.sequence_length


class ByAttention(Spec):
    """A number by what is counted of attention: the lower triangle, or the square."""

    causal: PositiveFloat
    full: PositiveFloat


class Column(Spec):
    """What is printed of the run on one network."""

    tokens_per_day: PositiveFloat = Field(description="billions")
    time_per_step: PositiveFloat = Field(description="seconds, like the phases")
    phases: dict[str, PositiveFloat] = Field(description="by name; their sum is the step")
    tflops: ByAttention = Field(description="per device")
    mfu: ByAttention = Field(description="percent")

    @model_validator(mode="after")
    def _has_bubble(self) -> "Column":
        if "bubble" not in self.phases:
            raise ValueError(f"phases: found no 'bubble'{closest('bubble', self.phases)}")
        return self


Columns = Annotated[dict[str, Column], Field(min_length=1)]


def training_step(
    models: Mapping[str, Any], run: Mapping[str, Any], networks: Mapping[str, Any]
) -> list[Record]:
    """Return every printed number of a training step beside what it follows from.

    Args:
        models: Entries of ``config/models.yaml``, that of the run among them.
        run: A ``Run``.
        networks: By name, a ``Column``.

    Returns:
        ``step/<quantity>`` by ``network`` and ``method``: ``printed``, or where it comes from, and
        ``prediction``, whether operations count multi-token prediction; ``step/difference``,
        relative, of each derived number to the printed one; ``step/between_networks``, every
        printed number over that of the first network less one.

    Raises:
        UserError: If an argument is not as described.
    """
    setup: Run = validate(Run, run, f"{WHERE}: run")
    columns = validate(Columns, networks, f"{WHERE}: networks")
    if setup.model not in models:
        raise UserError(f"{WHERE}: run.model: found '{setup.model}'{closest(setup.model, models)}")
    spec: DecoderSpec = validate(
        DecoderSpec, models[setup.model], f"{WHERE}: models: {setup.model}"
    )
    return [
        *(row for name, column in columns.items() for row in _column(name, column, setup, spec)),
        *_between(columns),
    ]


def flops_per_token(spec: DecoderSpec, length: int, attention: str, prediction: bool) -> float:
    """Return training operations per token, as ``decoder_training_flops`` counts them."""
    causal = attention == "causal"
    return decoder_training_flops(spec, length, causal=causal, prediction=prediction) / length


def tflops_per_device(flops: float, tokens_per_day: float, devices: int) -> float:
    """Return TFLOPS of a device from operations per token and tokens per day of all devices."""
    return flops * tokens_per_day / SECONDS_PER_DAY / devices / TERA


def derived(
    column: Column, run: Run, spec: DecoderSpec
) -> Iterator[tuple[str, float, dict[str, str]]]:
    """Yield every derived quantity, its value, and as labels what it is derived from."""
    tokens = column.tokens_per_day * BILLION
    steps_per_day = SECONDS_PER_DAY / column.time_per_step
    from_time, from_day = {"method": "time_per_step"}, {"method": "tokens_per_day"}
    yield "tokens_per_day", run.tokens_per_step * steps_per_day / BILLION, from_time
    yield "time_per_step", run.tokens_per_step * SECONDS_PER_DAY / tokens, from_day
    yield "time_per_step", sum(column.phases.values()), {"method": "phases"}
    percent = PERCENT / run.peak_tflops
    for attention, tflops in column.tflops:
        yield f"mfu_{attention}", tflops * percent, {"method": "printed_tflops"}
        for prediction in ("left out", "counted"):
            counted = prediction == "counted"
            flops = flops_per_token(spec, run.sequence_length, attention, counted)
            computed = tflops_per_device(flops, tokens, run.devices)
            labels = {"method": "closed_form", "prediction": prediction}
            yield f"tflops_{attention}", computed, labels
            yield f"mfu_{attention}", computed * percent, labels


def printed(column: Column) -> dict[str, float]:
    """Return the printed number of every quantity of ``UNITS`` but the share of the bubble."""
    rates = {f"tflops_{name}": value for name, value in column.tflops}
    shares = {f"mfu_{name}": value for name, value in column.mfu}
    times = {"tokens_per_day": column.tokens_per_day, "time_per_step": column.time_per_step}
    return times | rates | shares


def _column(name: str, column: Column, run: Run, spec: DecoderSpec) -> Iterator[Record]:
    known = printed(column)
    for quantity, value in known.items():
        yield _quantity(quantity, value, network=name, method="printed")
    for phase, seconds in column.phases.items():
        yield record("step/phase", seconds, "s", network=name, phase=phase, method="printed")
    bubble = column.phases["bubble"] / column.time_per_step
    yield _quantity("bubble_share", bubble, network=name, method="phases")
    for quantity, value, source in derived(column, run, spec):
        yield _quantity(quantity, value, network=name, **source)
        difference = value / known[quantity] - 1
        yield record("step/difference", difference, "1", network=name, quantity=quantity,
                     **source)  # fmt: skip


def _between(columns: Mapping[str, Column]) -> Iterator[Record]:
    (base, first), *others = columns.items()
    for name, column in others:
        for quantity, value in printed(column).items():
            difference = value / printed(first)[quantity] - 1
            yield record("step/between_networks", difference, "1", network=name, over=base,
                         quantity=quantity)  # fmt: skip


def _quantity(quantity: str, value: float, **labels: str) -> Record:
    return record(f"step/{quantity}", value, UNITS[quantity], **labels)
