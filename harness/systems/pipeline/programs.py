"""What a pipeline schedule is made of: the operations of every rank, in order.

A model is cut into stages; a micro-batch runs forward through all of them and then backward. A rank
does what its list says, one operation after the other; when that is, the simulator finds out.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

TaskKind = Literal["forward", "backward", "backward_input", "backward_weight"]
OperationKind = Literal[
    "forward", "backward", "backward_input", "backward_weight", "overlapped"
]  # fmt: skip


class Task(NamedTuple):
    """One pass of a micro-batch through a stage.

    ``backward`` takes the gradients of inputs and weights together, the other two one of them.
    """

    kind: TaskKind
    stage: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class Operation:
    """What a rank does at once: one task, or a forward and a backward task that overlap."""

    tasks: tuple[Task, ...]

    @property
    def kind(self) -> OperationKind:
        """The kind of the only task, or ``overlapped``."""
        return self.tasks[0].kind if len(self.tasks) == 1 else "overlapped"


@dataclass(frozen=True)
class Program:
    """A schedule for given numbers of stages and micro-batches.

    Attributes:
        stages: Pieces that the model is cut into.
        micro_batches: Every one passes through all stages, whichever ranks hold them.
        ranks: Of every rank, its operations in order.
    """

    stages: int
    micro_batches: int
    ranks: tuple[tuple[Operation, ...], ...]


class Lane(NamedTuple):
    """A stage that a rank holds, and the first of the micro-batches that it takes in order."""

    stage: int
    first_micro_batch: int


class RankWriter:
    """Writes the operations of one rank; micro-batches follow each other within a lane.

    Weight gradients that are split off wait in one queue, the oldest first.

    Args:
        lanes: By the number that the methods call them.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = tuple(lanes)
        self.operations: list[Operation] = []
        self._taken: Counter[tuple[str, int]] = Counter()
        self._weights: deque[Task] = deque()

    def forward(self, lane: int) -> None:
        """Run the lane's next micro-batch forward."""
        self._write(self._next("forward", lane))

    def backward(self, lane: int) -> None:
        """Run the lane's next micro-batch backward, weight gradients included."""
        self._write(self._next("backward", lane))

    def backward_input(self, lane: int) -> None:
        """Run the lane's next micro-batch backward; its weight gradient is left for later."""
        task = self._next("backward_input", lane)
        self._weights.append(task._replace(kind="backward_weight"))
        self._write(task)

    def backward_weight(self) -> None:
        """Take the weight gradient that has waited longest."""
        self._write(self._weights.popleft())

    def remaining_weights(self) -> None:
        """Take all weight gradients that wait."""
        while self._weights:
            self.backward_weight()

    def overlapped(self, forward: int, backward: int) -> None:
        """Run one micro-batch forward and another one backward at the same time.

        Args:
            forward: Lane of the first.
            backward: Lane of the second.
        """
        self._write(self._next("forward", forward), self._next("backward", backward))

    def _next(self, kind: TaskKind, lane: int) -> Task:
        key = ("forward" if kind == "forward" else "backward", lane)
        stage, first = self.lanes[lane]
        task = Task(kind, stage, first + self._taken[key])
        self._taken[key] += 1
        return task

    def _write(self, *tasks: Task) -> None:
        self.operations.append(Operation(tasks))


def peak_activations(program: Program) -> tuple[int, ...]:
    """Return of every rank the most activations of a stage that it holds at once.

    A stage's activations of a micro-batch are held from the start of its forward task to the end
    of its weight gradient: a backward task for inputs alone frees nothing. With this convention the
    numbers are those of arXiv 2412.19437, table 2.
    """
    return tuple(_peak(operations) for operations in program.ranks)


def _peak(operations: Sequence[Operation]) -> int:
    held = peak = 0
    for operation in operations:
        kinds = [task.kind for task in operation.tasks]
        held += kinds.count("forward")
        peak = max(peak, held)
        held -= kinds.count("backward") + kinds.count("backward_weight")
    return peak
