"""Bubbles, activations and timelines of pipeline schedules, as records."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from harness.config.base import Spec, validate
from harness.errors import UserError, closest
from harness.records.record import Record, record
from harness.systems.pipeline import closed_forms
from harness.systems.pipeline.programs import Program, peak_activations
from harness.systems.pipeline.schedules import INTERLEAVED, build
from harness.systems.pipeline.simulator import Durations, Timeline, simulate

# Durations by name, with their unit.
Units = dict[str, tuple[Durations, str]]


class Size(Spec):
    """What a schedule is made for."""

    stages: PositiveInt
    micro_batches: PositiveInt
    virtual_stages: PositiveInt = Field(default=1, description="of interleaved 1F1B alone more")


class Step(Spec):
    """Seconds that a rank spent on each kind of operation in a training step, as published.

    ``backward`` is what arXiv 2505.09343, table 4, calls 1B: backward passes outside pairs, whole
    or for the input alone; ``backward_weight`` are the weight gradients that were split off.
    """

    schedule: Literal["dualpipe", "dualpipe_v"]
    stages: PositiveInt
    micro_batches: PositiveInt
    forward: PositiveFloat
    backward: PositiveFloat
    backward_weight: PositiveFloat
    overlapped: PositiveFloat
    bubble: PositiveFloat


class Drawing(Spec):
    """Schedules whose operations are recorded one by one."""

    schedules: list[str]
    stages: PositiveInt
    micro_batches: PositiveInt
    durations: str = Field(description="name among `durations` and `steps`")


def pipeline_schedules(
    schedules: Sequence[str],
    sizes: Sequence[Mapping[str, Any]],
    interleaved: Sequence[Mapping[str, Any]],
    durations: Mapping[str, Any],
    steps: Mapping[str, Any],
    drawing: Mapping[str, Any],
) -> list[Record]:
    """Return what every schedule idles and holds at every size, simulated and by closed form.

    A bubble is what a rank idles from the first start to the last end on any rank; ranks have
    different ones if overlapping saves time, and the mean over them is recorded.

    Args:
        schedules: Names of ``SCHEDULES`` that need no virtual stages.
        sizes: For all of ``schedules``.
        interleaved: Sizes for interleaved 1F1B.
        durations: By name, in multiples of anything (unit 1).
        steps: By name: published steps, from whose sums durations in seconds follow.
        drawing: A ``Drawing``.

    Returns:
        ``pipeline/bubble``, its share of the makespan and its ratio to the closed form;
        ``pipeline/longest_bubble``, ``pipeline/makespan``, ``pipeline/peak_activations``;
        ``pipeline/duration`` and ``pipeline/overlap_speedup`` of the durations;
        ``schedule/start`` and ``schedule/end`` of every task that is drawn.

    Raises:
        UserError: If an argument is not as described.
    """
    where = "pipeline_schedules"
    names = validate(Annotated[list[str], Field(min_length=1)], schedules, f"{where}: schedules")
    for_all = validate(list[Size], sizes, f"{where}: sizes")
    with_pieces = validate(list[Size], interleaved, f"{where}: interleaved")
    published = validate(dict[str, Step], steps, f"{where}: steps")
    units = _with_units(validate(dict[str, Durations], durations, f"{where}: durations"), published)
    drawn: Drawing = validate(Drawing, drawing, f"{where}: drawing")
    if drawn.durations not in units:
        raise UserError(f"{where}: drawing.durations: found '{drawn.durations}'"
                        f"{closest(drawn.durations, units)}")  # fmt: skip
    records = [row for name, pair in units.items() for row in _durations(name, *pair)]
    pairs = [*product(names, for_all), *product([INTERLEAVED], with_pieces)]
    for name, size in dict.fromkeys(pairs):
        records += _of_program(name, size, units)
    for name, step in published.items():
        records += _printed(name, step)
    for name in drawn.schedules:
        records += _drawn(name, drawn, *units[drawn.durations])
    return records


def _with_units(given: dict[str, Durations], published: dict[str, Step]) -> Units:
    for name in published:
        if name in given:
            raise UserError(f"pipeline_schedules: steps: '{name}' is among durations too")
    units = {name: (value, "1") for name, value in given.items()}
    return units | {name: (durations_of(name, step), "s") for name, step in published.items()}


def durations_of(name: str, step: Step) -> Durations:
    """Return the seconds of single operations, given the sums of a published step.

    Sums are divided by the operations of the schedule, averaged over ranks. The weight gradients
    inside whole backward passes are taken to last as long as those that were split off.

    Raises:
        UserError: If the schedule cannot be made, or the sums leave an operation no time.
    """
    program = _program(step.schedule, Size(stages=step.stages, micro_batches=step.micro_batches))
    total = Counter(operation.kind for rank in program.ranks for operation in rank)
    count = {kind: number / len(program.ranks) for kind, number in total.items()}
    weight = step.backward_weight / count["backward_weight"]
    passes = count["backward"] + count["backward_input"]
    seconds = {
        "forward": step.forward / count["forward"],
        "backward_input": (step.backward - count["backward"] * weight) / passes,
        "backward_weight": weight,
        "overlapped": step.overlapped / count["overlapped"],
    }
    durations: Durations = validate(Durations, seconds, f"pipeline_schedules: steps.{name}")
    return durations


def _durations(name: str, durations: Durations, unit: str) -> Iterator[Record]:
    values = dict(durations) | {"backward": durations.backward}
    for kind, value in values.items():
        yield record("pipeline/duration", value, unit, durations=name, kind=kind)
    speedup = (durations.forward + durations.backward) / durations.overlapped
    yield record("pipeline/overlap_speedup", speedup, "1", durations=name)


def _of_program(schedule: str, size: Size, units: Units) -> Iterator[Record]:
    program, pieces = _program(schedule, size), size.virtual_stages
    labels = {"schedule": schedule, **size.model_dump()}
    for method, held in (
        ("simulated", max(peak_activations(program)) / pieces),
        ("closed_form", closed_forms.peak_activations(schedule, size.stages, pieces)),
    ):
        yield record("pipeline/peak_activations", held, "activations of a stage",
                      method=method, **labels)  # fmt: skip
    for name, (durations, unit) in units.items():
        timeline = simulate(program, durations.of_piece(pieces))
        closed = closed_forms.bubble(schedule, size.stages, durations, pieces)
        of = labels | {"durations": name}
        yield record("pipeline/bubble", closed, unit, method="closed_form", **of)
        for metric, value, its_unit in _measured(timeline, closed, unit):
            yield record(f"pipeline/{metric}", value, its_unit, method="simulated", **of)


def _program(schedule: str, size: Size) -> Program:
    try:
        return build(schedule, size.stages, size.micro_batches, size.virtual_stages)
    except UserError as error:
        raise UserError(f"pipeline_schedules: {error}") from None


def _measured(timeline: Timeline, closed: float, unit: str) -> Iterator[tuple[str, float, str]]:
    bubble = timeline.mean_bubble
    yield "bubble", bubble, unit
    yield "longest_bubble", max(timeline.bubbles), unit
    yield "makespan", timeline.makespan, unit
    yield "bubble_share", bubble / timeline.makespan, "1"
    # Two stages of DualPipe have none.
    if closed > 0:
        yield "bubble_over_closed_form", bubble / closed, "1"


def _printed(name: str, step: Step) -> Iterator[Record]:
    size = Size(stages=step.stages, micro_batches=step.micro_batches)
    labels = {"schedule": step.schedule, **size.model_dump(), "durations": name}
    total = step.forward + step.backward + step.backward_weight + step.overlapped + step.bubble
    for metric, value, unit in (
        ("bubble", step.bubble, "s"),
        ("makespan", total, "s"),
        ("bubble_share", step.bubble / total, "1"),
    ):
        yield record(f"pipeline/{metric}", value, unit, method="printed", **labels)


def _drawn(schedule: str, drawing: Drawing, durations: Durations, unit: str) -> Iterator[Record]:
    size = Size(stages=drawing.stages, micro_batches=drawing.micro_batches)
    program = _program(schedule, size)
    timeline = simulate(program, durations)
    of = {"schedule": schedule, **size.model_dump(), "durations": drawing.durations}
    for rank, spans in enumerate(timeline.spans):
        for place, (operation, span) in enumerate(zip(program.ranks[rank], spans, strict=True)):
            for task in operation.tasks:
                labels = of | task._asdict() | {"rank": rank, "operation": place}
                yield record("schedule/start", span.start, unit, **labels)
                yield record("schedule/end", span.end, unit, **labels)
