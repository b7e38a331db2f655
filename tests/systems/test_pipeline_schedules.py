"""Schedules against those of torch.distributed.pipelining and of published tables."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.pipelining import schedules as published

from harness.errors import UserError
from harness.systems.pipeline import closed_forms
from harness.systems.pipeline.programs import Task, peak_activations
from harness.systems.pipeline.schedules import SCHEDULES, build

KINDS = {"F": "forward", "B": "backward", "I": "backward_input", "W": "backward_weight"}


def torch_program(schedule, ranks: int, stages: int, micro_batches: int) -> list[list[tuple]]:
    """Return what torch lets every rank do, as tuples of tasks."""
    local = [
        SimpleNamespace(num_stages=stages, group_size=ranks, group_rank=0, stage_index=index,
                        submod=nn.Identity(), has_backward=True, is_first=False, is_last=False)
        for index in range(0, stages, ranks)
    ]  # fmt: skip
    of_one = issubclass(schedule, published.PipelineScheduleSingle)
    order = schedule(local[0] if of_one else local, micro_batches).pipeline_order
    actions = [[a for a in order[rank] if a and a.is_compute_op] for rank in range(ranks)]
    return [[_tasks(action) for action in rank] for rank in actions]


def _tasks(action) -> tuple[Task, ...]:
    return tuple(
        Task(KINDS[one.computation_type.value], one.stage_index, one.microbatch_index)
        for one in action.sub_actions or [action]
    )


def our_program(*arguments) -> list[list[tuple]]:
    return [[operation.tasks for operation in rank] for rank in build(*arguments).ranks]


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 8), (4, 8), (8, 24), (8, 8)])
def test_1f1b_is_torchs(stages, micro_batches):
    expected = torch_program(published.Schedule1F1B, stages, stages, micro_batches)
    # torch counts the micro-batches of the last rank from one.
    expected[-1] = [
        (Task(kind, stages - 1, micro_batch),)
        for micro_batch in range(micro_batches)
        for kind in ("forward", "backward")
    ]
    assert our_program("1f1b", stages, micro_batches) == expected


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 8), (4, 8), (8, 24), (8, 8)])
def test_zb1p_is_torchs(stages, micro_batches):
    schedule = published.ScheduleInterleavedZeroBubble
    expected = torch_program(schedule, stages, stages, micro_batches)
    assert our_program("zb1p", stages, micro_batches) == expected


@pytest.mark.parametrize(("stages", "micro_batches", "virtual"), [(2, 4, 2), (4, 4, 3), (8, 24, 2)])
def test_interleaved_1f1b_is_torchs(stages, micro_batches, virtual):
    schedule = published.ScheduleInterleaved1F1B
    expected = torch_program(schedule, stages, stages * virtual, micro_batches)
    assert our_program("interleaved_1f1b", stages, micro_batches, virtual) == expected


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 2), (8, 8), (8, 21), (16, 40)])
def test_dualpipe_v_is_torchs(stages, micro_batches):
    expected = torch_program(published.ScheduleDualPipeV, stages // 2, stages, micro_batches)
    assert our_program("dualpipe_v", stages, micro_batches) == expected


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 4), (8, 16), (8, 20), (16, 120)])
def test_dualpipe_is_dualpipe_v_from_both_ends(stages, micro_batches):
    """The second stage of V takes micro-batches from the other end; the upper ranks mirror."""
    half, enter = stages // 2, micro_batches // 2
    folded = torch_program(published.ScheduleDualPipeV, half, stages, enter)
    found = our_program("dualpipe", stages, micro_batches)
    for rank, operations in enumerate(folded):
        lower = [tuple(_enter_later(t, (t.stage >= half) * enter) for t in o) for o in operations]
        upper = [tuple(_enter_later(t, (t.stage < half) * enter) for t in o) for o in operations]
        assert found[rank] == lower
        assert found[stages - 1 - rank] == upper


def _enter_later(task: Task, later: int) -> Task:
    return task._replace(micro_batch=task.micro_batch + later)


@st.composite
def sizes(draw, schedules=SCHEDULES) -> tuple:
    """A schedule and numbers for which there is one."""
    schedule = draw(st.sampled_from(schedules))
    virtual = draw(st.integers(2, 4)) if schedule == "interleaved_1f1b" else 1
    stages = draw(st.integers(1, 8))
    if schedule.startswith("dualpipe"):
        stages += stages % 2
    micro_batches = 2 * stages + draw(st.integers(0, 12))
    if schedule == "dualpipe":
        micro_batches += micro_batches % 2
    if schedule == "interleaved_1f1b":
        micro_batches += -micro_batches % stages
    return schedule, stages, micro_batches, virtual


@given(sizes())
def test_every_micro_batch_passes_every_stage_once_and_stays_on_its_rank(arguments):
    program = build(*arguments)
    places = range(program.stages * program.micro_batches)
    done = {kind: Counter() for kind in ("forward", "input", "weight")}
    rank_of = {}
    for rank, operations in enumerate(program.ranks):
        for task in (task for operation in operations for task in operation.tasks):
            place = task.stage * program.micro_batches + task.micro_batch
            assert rank_of.setdefault(place, rank) == rank
            for kind in {"forward": ["forward"], "backward": ["input", "weight"],
                         "backward_input": ["input"],
                         "backward_weight": ["weight"]}[task.kind]:  # fmt: skip
                done[kind][place] += 1
    for counts in done.values():
        assert counts == Counter(places)


@given(sizes())
def test_peak_activations_are_the_published_ones(arguments):
    schedule, stages, _, virtual = arguments
    held = max(peak_activations(build(*arguments))) / virtual
    assert held == pytest.approx(closed_forms.peak_activations(schedule, stages, virtual))


def test_zb1p_and_dualpipe_hold_equally_much_on_all_ranks():
    assert set(peak_activations(build("zb1p", 8, 20))) == {8}
    assert set(peak_activations(build("dualpipe", 8, 20))) == {9}
    assert peak_activations(build("1f1b", 8, 20)) == tuple(range(8, 0, -1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dualpip", 8, 20), r"schedule: found 'dualpip' \(did you mean 'dualpipe'\?\)"),
        (("dualpipe", 7, 20), r"dualpipe: stages: found 7, expected an even .* \(nearest: 8\)"),
        (("dualpipe", 8, 17), r"dualpipe: micro_batches: found 17, .* = 16 \(nearest: 18\)"),
        (("dualpipe", 8, 14), r"micro_batches: found 14, .* 2 \* stages = 16 \(nearest: 16\)"),
        (("dualpipe_v", 9, 20), r"dualpipe_v: stages: found 9, .* \(nearest: 10\)"),
        (("dualpipe_v", 8, 7), r"dualpipe_v: micro_batches: found 7, .* \(nearest: 8\)"),
        (("interleaved_1f1b", 8, 20, 2), r"micro_batches: found 20, .* stages = 8 \(nearest: 16\)"),
        (("interleaved_1f1b", 8, 24), "virtual_stages: found 1, expected at least 2"),
        (("zb1p", 8, 24, 2), "zb1p: virtual_stages: found 2, expected 1"),
        (("1f1b", 0, 24), "1f1b: stages: found 0, expected at least 1"),
        (("zb1p", 2, 0), "zb1p: micro_batches: found 0, expected at least 1"),
    ],
)
def test_what_no_schedule_can_be_made_for_is_named_with_the_rule(arguments, message):
    with pytest.raises(UserError, match=message):
        build(*arguments)
