"""How fast decoding with expert parallelism can be: arXiv 2505.09343, section 2.3.2.

Every token is dispatched to its experts and combined again in every layer. If two micro-batches
hide all computation behind that, one token takes twice the communication of each layer.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from harness.config.base import Spec, validate
from harness.errors import UserError, closest
from harness.records.record import Record, record

MICRO_BATCHES = 2
TRANSFERS_PER_LAYER = 2
MICROSECONDS, MILLISECONDS, GIGABYTE = 1e6, 1e3, 1e9
Quantity = Literal["communication", "time_per_token", "tokens_per_second"]
UNITS: dict[Quantity, str] = {
    "communication": "us",
    "time_per_token": "ms",
    "tokens_per_second": "token/s",
}
INPUT_UNITS = {"bandwidth": "GB/s", "latency": "us", "dispatch_bytes": "B", "combine_bytes": "B"}


class Deployment(Spec):
    """All that the limit depends on: one expert on every device, computation for free."""

    bandwidth: PositiveFloat = Field(description="GB/s of a device, one way")
    latency: NonNegativeFloat = Field(description="us that every transfer takes besides")
    hidden_size: PositiveInt
    layers: PositiveInt
    tokens: PositiveInt = Field(description="of a micro-batch on each device")
    experts: PositiveInt = Field(description="that a token is sent to, shared ones included")
    dispatch_bytes: PositiveFloat = Field(description="per value on the way to the experts")
    combine_bytes: PositiveFloat = Field(description="per value on the way back")


class Production(Spec):
    """Tokens per second and request that a service reached, and the case it comes nearest to."""

    case: str
    tokens_per_second: dict[str, PositiveFloat] = Field(description="by name")


class Measurement(Spec):
    """A published transfer: its time, and the bandwidth that is printed beside it."""

    microseconds: PositiveFloat
    gigabytes_per_second: PositiveFloat


class Transfers(Spec):
    """Published times of dispatch and combine alone, by the number of ranks."""

    tokens: PositiveInt
    experts: PositiveInt
    hidden_size: PositiveInt
    dispatch_bytes: PositiveFloat
    combine_bytes: PositiveFloat
    line_rate: PositiveFloat = Field(description="GB/s")
    dispatch: dict[PositiveInt, Measurement]
    combine: dict[PositiveInt, Measurement]


def transfer_time(
    tokens: int, experts: int, hidden_size: int, bytes_per_value: float, bandwidth: float
) -> float:
    """Return the seconds in which a device sends its tokens to their experts, or gets them back.

    Args:
        tokens: On the device.
        experts: Per token.
        hidden_size: Values of a token.
        bytes_per_value: Of what is sent.
        bandwidth: Bytes per second.
    """
    return tokens * experts * hidden_size * bytes_per_value / bandwidth


def communication_time(deployment: Deployment) -> float:
    """Return the seconds of one dispatch and combine, latency left out."""
    return transfer_time(
        deployment.tokens,
        deployment.experts,
        deployment.hidden_size,
        deployment.dispatch_bytes + deployment.combine_bytes,
        deployment.bandwidth * GIGABYTE,
    )


def time_per_token(deployment: Deployment) -> float:
    """Return the least seconds per output token of a request.

    Two micro-batches share the network, so every layer takes two dispatches and combines, and four
    times the latency.
    """
    latency = TRANSFERS_PER_LAYER * deployment.latency / MICROSECONDS
    return deployment.layers * MICRO_BATCHES * (communication_time(deployment) + latency)


def decode_limit(
    base: str,
    cases: Mapping[str, Any],
    printed: Mapping[str, Any],
    sensitivity: Mapping[str, Any],
    transfers: Mapping[str, Any],
    production: Mapping[str, Any],
) -> list[Record]:
    """Return the limit for named cases and over each input alone, beside published numbers.

    Args:
        base: Name of the case that the others differ from.
        cases: By name: a ``Deployment``, or what differs from the one of ``base``.
        printed: By case: published quantities (``Quantity``).
        sensitivity: By input: values that take the place of that of ``base``.
        transfers: By name: published ``Transfers``.
        production: A ``Production``.

    Returns:
        ``limit/communication`` in us, ``limit/time_per_token`` in ms and
        ``limit/tokens_per_second`` by case and method, or by input and its value; ``limit/input``,
        all inputs by case; ``limit/over_production``, the limit of its case over what was served;
        ``transfer/time`` in us, measured and by closed form at two bandwidths, and
        ``transfer/over_measured``.

    Raises:
        UserError: If an argument is not as described.
    """
    where = "decode_limit"
    changes = validate(dict[str, dict[str, Any]], cases, f"{where}: cases")
    if base not in changes:
        raise UserError(f"{where}: base: found case '{base}'{closest(base, changes)}")
    start: Deployment = validate(Deployment, changes[base], f"{where}: cases.{base}")
    named = {
        name: _changed(start, those, f"{where}: cases.{name}") for name, those in changes.items()
    }
    known = validate(dict[str, dict[Quantity, float]], printed, f"{where}: printed")
    served: Production = validate(Production, production, f"{where}: production")
    for name in (*known, served.case):
        if name not in named:
            raise UserError(f"{where}: found case '{name}'{closest(name, named)}")
    swept = validate(dict[str, list[float]], sensitivity, f"{where}: sensitivity")
    published = validate(dict[str, Transfers], transfers, f"{where}: transfers")
    return [
        *_inputs(named),
        *_cases(named, known),
        *_served(named[served.case], served),
        *_sweeps(base, start, swept, f"{where}: sensitivity"),
        *(row for name, those in published.items() for row in _transfers(name, those)),
    ]


def _changed(base: Deployment, changes: Mapping[str, Any], where: str) -> Deployment:
    deployment: Deployment = validate(Deployment, base.model_dump() | dict(changes), where)
    return deployment


def _inputs(deployments: Mapping[str, Deployment]) -> Iterator[Record]:
    for name, deployment in deployments.items():
        for key, value in deployment:
            yield record("limit/input", value, INPUT_UNITS.get(key, "1"), case=name, input=key)


def _cases(
    cases: Mapping[str, Deployment], printed: Mapping[str, Mapping[Quantity, float]]
) -> Iterator[Record]:
    for name, deployment in cases.items():
        for quantity, value in limits(deployment).items():
            yield _limit(quantity, value, case=name, method="closed_form")
        for quantity, value in printed.get(name, {}).items():
            yield _limit(quantity, value, case=name, method="printed")


def _served(deployment: Deployment, production: Production) -> Iterator[Record]:
    for name, value in production.tokens_per_second.items():
        labels = {"case": production.case, "service": name}
        yield _limit("tokens_per_second", value, method="production", **labels)
        ratio = limits(deployment)["tokens_per_second"] / value
        yield record("limit/over_production", ratio, "1", **labels)


def limits(deployment: Deployment) -> dict[Quantity, float]:
    """Return every ``Quantity`` of a deployment, in the units of ``UNITS``."""
    seconds = time_per_token(deployment)
    return {
        "communication": communication_time(deployment) * MICROSECONDS,
        "time_per_token": seconds * MILLISECONDS,
        "tokens_per_second": 1 / seconds,
    }


def _sweeps(
    base: str, start: Deployment, values: Mapping[str, list[float]], where: str
) -> Iterator[Record]:
    for name, points in values.items():
        for point in points:
            deployment = _changed(start, {name: point}, f"{where}.{name}")
            for quantity, value in limits(deployment).items():
                yield _limit(quantity, value, base=base, input=name, input_value=point)


def _transfers(name: str, published: Transfers) -> Iterator[Record]:
    """Yield measured times, and closed forms at the printed bandwidth and at the line rate.

    Who prints a bandwidth divides bytes by the time: at that one, only the bytes are compared.
    """
    for operation, measured, per_value in (
        ("dispatch", published.dispatch, published.dispatch_bytes),
        ("combine", published.combine, published.combine_bytes),
    ):
        for ranks, measurement in measured.items():
            labels = {"source": name, "operation": operation, "ranks": ranks}
            time = measurement.microseconds
            yield record("transfer/time", time, "us", bandwidth="measured", **labels)
            for bandwidth, rate in (("printed", measurement.gigabytes_per_second),
                                    ("line_rate", published.line_rate)):  # fmt: skip
                closed = MICROSECONDS * transfer_time(
                    published.tokens, published.experts, published.hidden_size, per_value,
                    rate * GIGABYTE,
                )  # fmt: skip
                yield record("transfer/time", closed, "us", bandwidth=bandwidth, **labels)
                yield record("transfer/over_measured", closed / time, "1", bandwidth=bandwidth,
                              **labels)  # fmt: skip


def _limit(quantity: Quantity, value: float, **labels: Any) -> Record:
    return record(f"limit/{quantity}", value, UNITS[quantity], **labels)
