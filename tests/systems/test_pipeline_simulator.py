"""The simulator against closed forms, longest paths and laws of any execution."""

import time

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pipeline_schedules import sizes

from harness.systems.pipeline import closed_forms
from harness.systems.pipeline.programs import Operation, Program, Task
from harness.systems.pipeline.schedules import build
from harness.systems.pipeline.simulator import Durations, simulate

EQUAL = Durations(forward=1, backward_input=1, backward_weight=1, overlapped=3)
TIMES = st.floats(0.1, 4)
ANY = st.builds(Durations, forward=TIMES, backward_input=TIMES, backward_weight=TIMES,
                overlapped=TIMES, latency=st.floats(0, 1))  # fmt: skip


def of_stage(timeline) -> dict[tuple[str, int, int], tuple[int, float, float]]:
    """Return rank, start and end of every forward and backward pass and weight gradient."""
    found = {}
    for rank, operations in enumerate(timeline.program.ranks):
        for operation, (start, end) in zip(operations, timeline.spans[rank], strict=True):
            for kind, stage, micro_batch in operation.tasks:
                name = "backward" if kind == "backward_input" else kind
                found[name, stage, micro_batch] = rank, start, end
    return found


def needed(program: Program, task: Task) -> tuple[str, int, int] | None:
    """Return what a task needs, written anew from the definition of a pipeline."""
    if task.kind == "backward_weight":
        return "backward", task.stage, task.micro_batch
    if task.kind == "forward":
        return None if task.stage == 0 else ("forward", task.stage - 1, task.micro_batch)
    if task.stage == program.stages - 1:
        return "forward", task.stage, task.micro_batch
    return "backward", task.stage + 1, task.micro_batch


@pytest.mark.parametrize(
    ("schedule", "stages", "micro_batches", "bubble"),
    [
        ("1f1b", 8, 20, 21),
        ("zb1p", 8, 20, 7),
        ("dualpipe", 8, 20, 6),
        ("dualpipe", 8, 16, 6),
        ("dualpipe_v", 8, 20, 6),
        ("1f1b", 16, 120, 45),
        ("zb1p", 16, 120, 15),
        ("dualpipe", 16, 120, 14),
        ("dualpipe_v", 16, 120, 14),
    ],
)
def test_reference_bubbles_of_equal_durations(schedule, stages, micro_batches, bubble):
    assert set(simulate(build(schedule, stages, micro_batches), EQUAL).bubbles) == {bubble}


@given(sizes())
def test_bubbles_of_equal_durations_are_the_closed_form_for_any_size(arguments):
    schedule, stages, _, virtual = arguments
    closed = closed_forms.bubble(schedule, stages, EQUAL, virtual)
    timeline = simulate(build(*arguments), EQUAL.of_piece(virtual))
    assert timeline.bubbles == pytest.approx([closed] * len(timeline.bubbles), abs=1e-9)


@given(sizes(["1f1b", "interleaved_1f1b"]), ANY)
def test_1f1b_has_its_closed_form_for_any_durations(arguments, durations):
    schedule, stages, _, virtual = arguments
    durations = durations.model_copy(update={"latency": 0.0})
    closed = closed_forms.bubble(schedule, stages, durations, virtual)
    timeline = simulate(build(*arguments), durations.of_piece(virtual))
    assert timeline.bubbles == pytest.approx([closed] * len(timeline.bubbles), abs=1e-9)


@given(st.integers(1, 8), st.integers(0, 12), TIMES, TIMES, st.floats(0.1, 1))
def test_zb1p_has_its_closed_form_if_weight_gradients_are_shortest(stages, more, f, i, share):
    durations = Durations(forward=f, backward_input=i, backward_weight=share * min(f, i),
                          overlapped=1)  # fmt: skip
    closed = closed_forms.bubble("zb1p", stages, durations)
    timeline = simulate(build("zb1p", stages, 2 * stages + more), durations)
    assert timeline.bubbles == pytest.approx([closed] * stages, abs=1e-9)


@given(st.sampled_from(["dualpipe", "dualpipe_v"]), st.integers(1, 5), st.integers(0, 6),
       st.floats(0.1, 1), st.floats(0.1, 1), st.floats(0, 1))  # fmt: skip
def test_dualpipe_idles_at_most_its_closed_form_if_w_f_i_grow(schedule, half, more, f, w, overlap):
    """Weight gradient, forward pass and input gradient in this order, overlapping never slower."""
    backward = 1 + w * f
    overlapped = backward + overlap * f
    durations = Durations(forward=f, backward_input=1, backward_weight=w * f,
                          overlapped=overlapped)  # fmt: skip
    stages = 2 * half
    timeline = simulate(build(schedule, stages, 2 * (stages + more)), durations)
    assert max(timeline.bubbles) <= closed_forms.bubble(schedule, stages, durations) + 1e-9


@given(sizes(), ANY)
def test_every_operation_starts_as_soon_as_its_rank_and_its_inputs_allow(arguments, durations):
    timeline = simulate(build(*arguments), durations)
    tasks = of_stage(timeline)
    for rank, operations in enumerate(timeline.program.ranks):
        free = 0.0
        for operation, (start, end) in zip(operations, timeline.spans[rank], strict=True):
            inputs = [tasks[need] for task in operation.tasks
                      if (need := needed(timeline.program, task))]  # fmt: skip
            arrivals = [at + durations.latency * (where != rank) for where, _, at in inputs]
            assert start == max([free, *arrivals])
            assert end == start + getattr(durations, operation.kind)
            free = end


@given(sizes(), ANY)
def test_makespan_is_the_longest_path_through_the_operations(arguments, durations):
    program = build(*arguments)
    graph = networkx.DiGraph()
    node_of, cost = {}, {}
    for rank, operations in enumerate(program.ranks):
        for place, operation in enumerate(operations):
            cost[rank, place] = getattr(durations, operation.kind)
            node_of |= dict.fromkeys(operation.tasks, (rank, place))
    by_result = {("backward" if kind == "backward_input" else kind, stage, micro_batch): node
                 for (kind, stage, micro_batch), node in node_of.items()}  # fmt: skip
    for task, node in node_of.items():
        before = [(node[0], node[1] - 1)] if node[1] else []
        if need := needed(program, task):
            before.append(by_result[need])
        for other in before:
            weight = cost[other] + durations.latency * (other[0] != node[0])
            graph.add_edge(other, node, weight=weight)
        graph.add_edge(node, "end", weight=cost[node])
    longest = networkx.dag_longest_path_length(graph)
    assert simulate(program, durations).makespan == pytest.approx(longest)


@given(sizes(), ANY, st.sampled_from(list(Durations.model_fields)), st.floats(0, 2))
def test_nothing_gets_faster_by_a_longer_duration(arguments, durations, name, more):
    program = build(*arguments)
    longer = durations.model_copy(update={name: getattr(durations, name) + more})
    assert simulate(program, longer).makespan >= simulate(program, durations).makespan


@given(sizes(), ANY)
def test_makespan_is_at_least_the_work_of_every_rank(arguments, durations):
    timeline = simulate(build(*arguments), durations)
    assert min(timeline.bubbles) >= -1e-9 * timeline.makespan


@pytest.mark.parametrize("schedule", ["1f1b", "zb1p", "dualpipe", "dualpipe_v"])
def test_without_latency_bubbles_do_not_grow_with_micro_batches(schedule):
    unequal = Durations(forward=1.0, backward_input=1.5, backward_weight=0.75, overlapped=2.5)
    few, many = (simulate(build(schedule, 8, n), unequal).bubbles for n in (16, 64))
    assert few == pytest.approx(many)


def test_a_program_that_halts_says_who_waits_for_what():
    first = (Operation((Task("forward", 0, 0),)), Operation((Task("backward", 0, 0),)))
    last = (Operation((Task("backward", 1, 0),)), Operation((Task("forward", 1, 0),)))
    message = "rank 0 waits at operation 1 for the gradient of micro-batch 0 at stage 1"
    with pytest.raises(ValueError, match=message):
        simulate(Program(2, 1, (first, last)), EQUAL)


def test_deepseek_v3s_size_takes_less_than_two_seconds():
    start = time.process_time()
    simulate(build("dualpipe", 16, 120), EQUAL)
    assert time.process_time() - start < 2
