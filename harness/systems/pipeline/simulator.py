"""One event simulator for all pipeline schedules."""

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import NamedTuple, get_args

from pydantic import NonNegativeFloat, PositiveFloat

from harness.config.base import Spec
from harness.systems.pipeline.programs import OperationKind, Program, Task

# The result that a task waits for: "activation" or "gradient", stage and micro-batch.
Result = tuple[str, int, int]


class Durations(Spec):
    """What a micro-batch's passes through a stage take, all in one unit.

    ``latency`` is from the end of a task to the arrival of its result on another rank; a rank sends
    and receives while it computes.
    """

    forward: PositiveFloat
    backward_input: PositiveFloat
    backward_weight: PositiveFloat
    overlapped: PositiveFloat
    latency: NonNegativeFloat = 0.0

    @property
    def backward(self) -> float:
        """A whole backward pass takes what its two halves take."""
        return self.backward_input + self.backward_weight

    def of_piece(self, pieces: int) -> "Durations":
        """Return the durations of one of ``pieces`` equal pieces of a stage."""
        parts = {name: value / pieces for name, value in self if name != "latency"}
        return self.model_copy(update=parts)


class Span(NamedTuple):
    """When an operation starts and ends."""

    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """When every operation of a program runs.

    Attributes:
        program: What was run.
        spans: Of every rank, those of its operations in order.
    """

    program: Program
    spans: tuple[tuple[Span, ...], ...]

    @property
    def makespan(self) -> float:
        """From the first start to the last end."""
        return max(spans[-1].end for spans in self.spans)

    @property
    def bubbles(self) -> tuple[float, ...]:
        """What of the makespan every rank does nothing."""
        return tuple(self.makespan - sum(end - start for start, end in s) for s in self.spans)

    @property
    def mean_bubble(self) -> float:
        """Mean of ``bubbles``: ranks have different ones if overlapping saves time."""
        return sum(self.bubbles) / len(self.bubbles)


def simulate(program: Program, durations: Durations) -> Timeline:
    """Run a program: an operation starts when its rank is free and its inputs have arrived.

    Raises:
        ValueError: If the program comes to a halt; it says who waits for what.
    """
    return _Simulation(program, durations).run()


class _Simulation:
    def __init__(self, program: Program, durations: Durations) -> None:
        self.program = program
        self.cost = {kind: getattr(durations, kind) for kind in get_args(OperationKind)}
        self.latency = durations.latency
        self.spans: list[list[Span]] = [[] for _ in program.ranks]
        self.results: dict[Result, tuple[float, int]] = {}
        self.waiting: defaultdict[Result, list[int]] = defaultdict(list)

    def run(self) -> Timeline:
        ready = deque(range(len(self.program.ranks)))
        while ready:
            ready.extend(self._advance(ready.popleft()))
        self._refuse_halt()
        return Timeline(self.program, tuple(tuple(spans) for spans in self.spans))

    def _advance(self, rank: int) -> list[int]:
        """Run what ``rank`` can run; return the ranks that waited for its results."""
        woken: list[int] = []
        spans = self.spans[rank]
        free = spans[-1].end if spans else 0.0
        for operation in self.program.ranks[rank][len(spans) :]:
            inputs = [_input(task, self.program.stages) for task in operation.tasks]
            missing = next((need for need in inputs if need and need not in self.results), None)
            if missing:
                self.waiting[missing].append(rank)
                return woken
            arrivals = [self._arrival(need, rank) for need in inputs if need]
            start = max([free, *arrivals])
            free = start + self.cost[operation.kind]
            spans.append(Span(start, free))
            for task in operation.tasks:
                result = _result(task)
                self.results[result] = (free, rank)
                woken += self.waiting.pop(result, [])
        return woken

    def _arrival(self, result: Result, rank: int) -> float:
        end, sender = self.results[result]
        return end if sender == rank else end + self.latency

    def _refuse_halt(self) -> None:
        for (kind, stage, micro_batch), ranks in self.waiting.items():
            done = len(self.spans[ranks[0]])
            raise ValueError(
                f"the program halts: rank {ranks[0]} waits at operation {done} for the {kind} of "
                f"micro-batch {micro_batch} at stage {stage}, which no rank gets to"
            )


def _input(task: Task, stages: int) -> Result | None:
    """Return what a task needs; None for the first stage, whose input is the data."""
    kind, stage, micro_batch = task
    if kind == "forward":
        return ("activation", stage - 1, micro_batch) if stage else None
    if kind == "backward_weight":
        return "gradient", stage, micro_batch
    if stage == stages - 1:
        return "activation", stage, micro_batch
    return "gradient", stage + 1, micro_batch


def _result(task: Task) -> Result:
    kinds = {"forward": "activation", "backward_weight": "weight gradient"}
    return kinds.get(task.kind, "gradient"), task.stage, task.micro_batch
