"""What it is worth to overlap computation and communication of two micro-batches.

arXiv 2505.09343, section 2.3.1: while one micro-batch computes attention or experts, the other one
is dispatched or combined. The paper gives no number.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from harness.config.base import Spec, validate
from harness.records.record import Record, record

MICRO_BATCHES = 2
Share = Annotated[float, Field(ge=0, le=1)]


class Grid(Spec):
    """Where the closed form is recorded."""

    communication_over_compute: list[PositiveFloat]
    exposed: list[Share] = Field(description="of communication, what nothing hides")


class Layer(Spec):
    """What a micro-batch spends in one of ``layers`` equal layers, in any unit, in this order."""

    attention: PositiveFloat
    dispatch: PositiveFloat
    experts: PositiveFloat
    combine: PositiveFloat
    layers: PositiveInt

    @property
    def compute(self) -> float:
        """Time of the two phases that compute."""
        return self.attention + self.experts

    @property
    def communication(self) -> float:
        """Time of the two phases that communicate."""
        return self.dispatch + self.combine


class Trace(Spec):
    """Published times of the kernels in a stretch of a run, in one unit.

    Communication kernels last longer while they wait, so that what they say of overlap is an upper
    bound; ``transfers`` leaves out those that only notify and wait.
    """

    span: PositiveFloat
    compute: PositiveFloat
    communication: PositiveFloat
    transfers: PositiveFloat
    overlapped: NonNegativeFloat = Field(description="communication while something is computed")


def speedup(compute: float, communication: float, exposed: float = 0.0) -> float:
    """Return how much faster overlapping is: ``(C + T) / (max(C, (1 - p) T) + p T)``.

    Args:
        compute: C, seconds or any other unit.
        communication: T, in the same unit.
        exposed: p, the share of communication that nothing hides. With none the result is at most
            2, and 2 only where ``compute`` and ``communication`` are equal.
    """
    shown = exposed * communication
    return (compute + communication) / (max(compute, communication - shown) + shown)


def overlapped_time(layer: Layer) -> float:
    """Return the time of two micro-batches that take turns on one compute and one network stream.

    Each stream takes the phases in the order of the layers, the first micro-batch first.
    """
    free = {"compute": 0.0, "network": 0.0}
    arrived = [0.0] * MICRO_BATCHES
    for _ in range(layer.layers):
        for stream, time in (("compute", layer.attention), ("network", layer.dispatch),
                             ("compute", layer.experts), ("network", layer.combine)):  # fmt: skip
            for index in range(MICRO_BATCHES):
                start = max(free[stream], arrived[index])
                free[stream] = arrived[index] = start + time
    return max(arrived)


def overlap(
    grid: Mapping[str, Any], layers: Mapping[str, Any], traces: Mapping[str, Any]
) -> list[Record]:
    """Return the speed-up by overlapping: by closed form, simulated, and from published traces.

    Args:
        grid: A ``Grid``.
        layers: By name: a ``Layer``, through all of which two micro-batches are simulated.
        traces: By name: a ``Trace``.

    Returns:
        ``overlap/speedup`` by ``method``, and ``overlap/hidden_share`` of the traces.

    Raises:
        UserError: If an argument is not as described.
    """
    points: Grid = validate(Grid, grid, "overlap: grid")
    simulated = validate(dict[str, Layer], layers, "overlap: layers")
    published = validate(dict[str, Trace], traces, "overlap: traces")
    return [
        *_closed_form(points),
        *(row for name, layer in simulated.items() for row in _simulated(name, layer)),
        *(row for name, trace in published.items() for row in _traced(name, trace)),
    ]


def _closed_form(grid: Grid) -> Iterator[Record]:
    for ratio in grid.communication_over_compute:
        for exposed in grid.exposed:
            yield _speedup(speedup(1.0, ratio, exposed), method="closed_form",
                           communication_over_compute=ratio, exposed=exposed)  # fmt: skip


def _simulated(name: str, layer: Layer) -> Iterator[Record]:
    one_by_one = MICRO_BATCHES * layer.layers * (layer.compute + layer.communication)
    value = one_by_one / overlapped_time(layer)
    yield _speedup(value, method="simulated", layer=name, layers=layer.layers)
    bound = speedup(layer.compute, layer.communication)
    yield _speedup(bound, method="closed_form", layer=name, layers=layer.layers)


def _traced(name: str, trace: Trace) -> Iterator[Record]:
    hidden = trace.overlapped / trace.communication
    yield record("overlap/hidden_share", hidden, "1", trace=name)
    for counted, communication in (("all kernels", trace.communication),
                                   ("transfers", trace.transfers)):  # fmt: skip
        value = (trace.compute + communication) / trace.span
        yield _speedup(value, method="traced", trace=name, counted=counted)
    modelled = speedup(trace.compute, trace.communication, 1 - hidden)
    yield _speedup(modelled, method="closed_form", trace=name, counted="all kernels")


def _speedup(value: float, **labels: Any) -> Record:
    return record("overlap/speedup", value, "1", **labels)
