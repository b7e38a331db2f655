"""Published pipeline schedules as programs.

``stages`` is the PP of arXiv 2412.19437, table 2: the pieces of a model of which a forward pass
takes F. All builders raise ``UserError`` for numbers that a schedule cannot be made for.
"""

from collections.abc import Callable, Iterable

from harness.errors import UserError, closest
from harness.systems.pipeline.programs import Lane, Program, RankWriter


def one_forward_one_backward(stages: int, micro_batches: int) -> Program:
    """Return 1F1B: as many micro-batches ahead as there are later stages, then in turns.

    PipeDream-Flush (arXiv 2006.09503); Megatron-LM (arXiv 2104.04473), section 2.2.1.
    """
    _at_least(1, "1f1b", stages=stages, micro_batches=micro_batches)
    writers = [RankWriter([Lane(rank, 0)]) for rank in range(stages)]
    for rank, writer in enumerate(writers):
        _in_turns(writer, stages - 1 - rank, micro_batches)
    return _program(stages, micro_batches, writers)


def interleaved_one_forward_one_backward(
    stages: int, micro_batches: int, virtual_stages: int
) -> Program:
    """Return interleaved 1F1B on ``stages`` ranks, for a model of ``stages * virtual_stages``.

    Megatron-LM (arXiv 2104.04473), section 2.2.2: rank r holds pieces r, r + stages and so on, and
    takes ``stages`` micro-batches through one of them before it turns to the next.
    """
    _at_least(1, INTERLEAVED, stages=stages, micro_batches=micro_batches)
    _at_least(2, INTERLEAVED, virtual_stages=virtual_stages)
    if micro_batches % stages:
        nearest = max(1, round(micro_batches / stages)) * stages
        raise UserError(f"{INTERLEAVED}: micro_batches: found {micro_batches}, expected a multiple "
                        f"of stages = {stages} (nearest: {nearest})")  # fmt: skip
    pieces = stages * virtual_stages
    writers = [
        RankWriter([Lane(piece, 0) for piece in range(rank, pieces, stages)])
        for rank in range(stages)
    ]
    for rank, writer in enumerate(writers):
        warm_up = (virtual_stages - 1) * stages + 2 * (stages - 1 - rank)
        _in_turns(writer, warm_up, micro_batches * virtual_stages, block=stages)
    return _program(pieces, micro_batches, writers)


def zero_bubble(stages: int, micro_batches: int) -> Program:
    """Return ZB1P, in its source ZB-H1: 1F1B with weight gradients that fill the end.

    Zero bubble pipeline parallelism (arXiv 2401.10241), section 2.1: rank r is r weight gradients
    late, so that every rank holds as many activations as the first.
    """
    _at_least(1, "zb1p", stages=stages, micro_batches=micro_batches)
    writers = [RankWriter([Lane(rank, 0)]) for rank in range(stages)]
    for rank, writer in enumerate(writers):
        _in_turns(writer, stages - 1 - rank, micro_batches, late_weights=rank)
    return _program(stages, micro_batches, writers)


def dualpipe(stages: int, micro_batches: int) -> Program:
    """Return DualPipe: half of the micro-batches enter at either end, each rank holds two stages.

    DeepSeek-V3 (arXiv 2412.19437), section 3.2.1, in the order of the code published as
    ``deepseek-ai/DualPipe``. Micro-batches from ``micro_batches / 2`` on enter at the last rank.
    """
    _even("dualpipe", "stages", stages, least=2)
    _even("dualpipe", "micro_batches", micro_batches, least=2 * stages, rule="2 * stages = ")
    half, enter = stages // 2, micro_batches // 2
    writers = []
    for rank in range(stages):
        own, opposite = Lane(rank, 0), Lane(stages - 1 - rank, enter)
        # The lane that enters at the nearer end comes first.
        writer = RankWriter([own, opposite] if rank < half else [opposite, own])
        _from_both_ends(writer, min(rank, stages - 1 - rank), half, enter)
        writers.append(writer)
    return _program(stages, micro_batches, writers)


def dualpipe_v(stages: int, micro_batches: int) -> Program:
    """Return DualPipeV on ``stages / 2`` ranks: the way through the model is folded to a V.

    ``deepseek-ai/DualPipe``: the half of DualPipe's ranks that one of its directions enters at.
    """
    _even("dualpipe_v", "stages", stages, least=2)
    if micro_batches < stages:
        raise UserError(f"dualpipe_v: micro_batches: found {micro_batches}, expected at least "
                        f"stages = {stages} (nearest: {stages})")  # fmt: skip
    half = stages // 2
    writers = [RankWriter([Lane(rank, 0), Lane(stages - 1 - rank, 0)]) for rank in range(half)]
    for rank, writer in enumerate(writers):
        _from_both_ends(writer, rank, half, micro_batches)
    return _program(stages, micro_batches, writers)


_BUILDERS: dict[str, Callable[[int, int], Program]] = {
    "1f1b": one_forward_one_backward,
    "zb1p": zero_bubble,
    "dualpipe": dualpipe,
    "dualpipe_v": dualpipe_v,
}
INTERLEAVED = "interleaved_1f1b"
SCHEDULES = (*_BUILDERS, INTERLEAVED)


def build(schedule: str, stages: int, micro_batches: int, virtual_stages: int = 1) -> Program:
    """Return the program of a schedule by its name.

    Args:
        schedule: One of ``SCHEDULES``.
        stages: PP; DualPipeV has half as many ranks, the others as many.
        micro_batches: Of a training step, those of both directions together.
        virtual_stages: Pieces of a stage that interleaved 1F1B takes apart.

    Raises:
        UserError: If there is no such schedule, or none for these numbers.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"schedule: found '{schedule}'{closest(schedule, SCHEDULES)}")
    if schedule == INTERLEAVED:
        return interleaved_one_forward_one_backward(stages, micro_batches, virtual_stages)
    if virtual_stages != 1:
        raise UserError(f"{schedule}: virtual_stages: found {virtual_stages}, expected 1: only "
                        f"{INTERLEAVED} has more")  # fmt: skip
    return _BUILDERS[schedule](stages, micro_batches)


def _in_turns(
    writer: RankWriter,
    warm_up: int,
    total: int,
    block: int = 1,
    late_weights: int | None = None,
) -> None:
    """Write forward and backward tasks in turns, after ``warm_up`` forward tasks.

    Args:
        writer: Of the rank.
        warm_up: Forward tasks before the first backward task.
        total: Forward tasks in all.
        block: Micro-batches in a row on one lane.
        late_weights: Weight gradients that wait at most; none: they are not split off.
    """
    lanes, warm_up = len(writer.lanes), min(warm_up, total)
    for step in range(warm_up + total):
        if step < total:
            writer.forward(step // block % lanes)
        done = step - warm_up
        if done < 0:
            continue
        lane = lanes - 1 - done // block % lanes
        if late_weights is None:
            writer.backward(lane)
        else:
            writer.backward_input(lane)
            if done >= late_weights:
                writer.backward_weight()
    writer.remaining_weights()


def _from_both_ends(writer: RankWriter, depth: int, half: int, micro_batches: int) -> None:
    """Write the eight steps of DualPipe.

    Args:
        writer: Of the rank; lane 0 enters the pipeline at the nearer end.
        depth: Ranks between this one and the nearer end.
        half: Ranks from either end to the middle.
        micro_batches: Of each lane.
    """
    inner = half - 1 - depth
    for _ in range(2 * inner):
        writer.forward(0)
    for _ in range(depth + 1):
        writer.forward(0)
        writer.forward(1)
    for _ in range(inner):
        writer.backward_input(1)
        writer.backward_weight()
        writer.forward(1)
    for step in range(micro_batches - 2 * half + depth + 1):
        if step == 0 and inner == 0:
            # Overlapped, the first pair of a middle rank would hold up the others.
            writer.forward(0)
            writer.backward(1)
        else:
            writer.overlapped(forward=0, backward=1)
        writer.overlapped(forward=1, backward=0)
    for _ in range(inner):
        writer.backward(1)
        writer.overlapped(forward=1, backward=0)
    # The second half of these leaves its weight gradients for the end.
    for index in range(2 * (depth + 1)):
        (writer.backward if index <= depth else writer.backward_input)(1 - index % 2)
    for _ in range(inner):
        writer.backward_weight()
        writer.backward_input(0)
    writer.remaining_weights()


def _program(stages: int, micro_batches: int, writers: Iterable[RankWriter]) -> Program:
    return Program(stages, micro_batches, tuple(tuple(writer.operations) for writer in writers))


def _at_least(least: int, schedule: str, **numbers: int) -> None:
    for key, number in numbers.items():
        if number < least:
            raise UserError(f"{schedule}: {key}: found {number}, expected at least {least}")


def _even(schedule: str, key: str, found: int, least: int, rule: str = "") -> None:
    if found < least or found % 2:
        raise UserError(f"{schedule}: {key}: found {found}, expected an even number of at least "
                        f"{rule}{least} (nearest: {max(least, found + found % 2)})")  # fmt: skip
