"""What is recorded, drawn and exported of pipeline schedules."""

import json
from pathlib import Path

import pytest
from record_values import assert_told_apart, only

from harness.config.yaml_file import read_yaml
from harness.errors import UserError
from harness.systems.pipeline import trace
from harness.systems.pipeline.evidence import Step, durations_of, pipeline_schedules
from harness.systems.pipeline.schedules import build
from harness.systems.pipeline.simulator import Durations, simulate
from paper_figures import pipeline_bubbles
from paper_figures import pipeline_schedules as gantt

CONFIG = Path(__file__).parents[2] / "config"
ARGUMENTS = read_yaml(CONFIG / "experiments" / "pipeline_schedules.yaml")["arguments"]
SMALL = ARGUMENTS | {
    "sizes": [{"stages": 4, "micro_batches": 8}],
    "interleaved": [{"stages": 4, "micro_batches": 8, "virtual_stages": 2}],
    "drawing": ARGUMENTS["drawing"] | {"stages": 4, "micro_batches": 8},
}
V3 = {"schedule": "dualpipe", "stages": 16, "micro_batches": 120}


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return pipeline_schedules(**ARGUMENTS)


def test_no_two_records_are_told_apart_by_nothing(records):
    assert_told_apart(records)


@pytest.mark.parametrize(
    ("kind", "milliseconds"),
    [("forward", 58), ("backward", 126), ("backward_weight", 42), ("overlapped", 139)],
)
def test_durations_follow_from_the_sums_of_the_published_step(records, kind, milliseconds):
    found = only(records, "pipeline/duration", durations="table_4", kind=kind)
    assert 1000 * found == pytest.approx(milliseconds, abs=0.5)


def test_sums_of_a_simulated_step_give_its_durations_back():
    durations = Durations(forward=1.0, backward_input=1.5, backward_weight=0.75, overlapped=2.5)
    program = build("dualpipe", 8, 20)
    sums = dict.fromkeys(("forward", "backward", "backward_weight", "overlapped"), 0.0)
    for rank, spans in zip(program.ranks, simulate(program, durations).spans, strict=True):
        for operation, (start, end) in zip(rank, spans, strict=True):
            kind = "backward" if operation.kind == "backward_input" else operation.kind
            sums[kind] += (end - start) / len(program.ranks)
    step = Step(schedule="dualpipe", stages=8, micro_batches=20, bubble=1, **sums)
    assert dict(durations_of("test", step)) == pytest.approx(dict(durations))


@pytest.mark.parametrize(
    ("schedule", "seconds"), [("1f1b", 2.75), ("zb1p", 1.50), ("dualpipe", 0.98)]
)
def test_formulas_at_the_durations_of_the_published_step(records, schedule, seconds):
    of = V3 | {"schedule": schedule, "durations": "table_4", "method": "closed_form"}
    assert only(records, "pipeline/bubble", **of) == pytest.approx(seconds, abs=0.005)


def test_the_published_step_idles_twice_as_long_as_its_schedule_explains(records):
    of = V3 | {"durations": "table_4"}
    printed = only(records, "pipeline/bubble", method="printed", **of)
    closed = only(records, "pipeline/bubble", method="closed_form", **of)
    longest = only(records, "pipeline/longest_bubble", **of)
    assert printed > 2 * closed > 2 * longest
    # Printed: 19.926 s, with 0.29 s of optimizer, of which its parts make 19.90 s.
    assert only(records, "pipeline/makespan", method="printed", **of) + 0.29 == pytest.approx(19.90)


def test_a_pair_saves_a_third_in_the_published_step(records):
    found = only(records, "pipeline/overlap_speedup", durations="table_4")
    assert found == pytest.approx(1.32, abs=0.005)


def test_only_latency_makes_bubbles_grow_with_micro_batches(records):
    of = {"schedule": "dualpipe", "stages": 8, "method": "simulated"}
    few, many = (
        [only(records, "pipeline/bubble", durations=name, micro_batches=n, **of)
         for name in ("equal", "equal_latency_0.1")]
        for n in (20, 64)
    )  # fmt: skip
    assert few[0] == many[0] < few[1] < many[1]


def test_drawn_operations_fill_the_makespan_but_for_the_bubbles(records):
    drawn = {"schedule": "dualpipe", "rank": 3}
    start, end = (
        {r["labels"]["operation"]: r["value"] for r in records if r["metric"] == metric
         and r["labels"].items() >= drawn.items()}
        for metric in ("schedule/start", "schedule/end")
    )  # fmt: skip
    of = {"schedule": "dualpipe", "stages": 8, "micro_batches": 20, "durations": "equal"}
    makespan = only(records, "pipeline/makespan", **of)
    assert sum(end[place] - start[place] for place in start) == makespan - 6


def test_the_ledger_has_these_verdicts(records, verdicts_of):
    assert verdicts_of("pipeline_schedules", records) == {
        "ds.overlap_step": "contradicted",
        **{
            f"ds.dualpipe.{prefix}{schedule}": "reproduced"
            for prefix in ("", "activations_")
            for schedule in ("1f1b", "zb1p", "dualpipe", "dualpipev")
        },
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedules": ["zb2p"]}, r"schedule: found 'zb2p' \(did you mean 'zb1p'\?\)"),
        ({"sizes": [{"stages": 4}]}, "sizes.0.micro_batches: required key is missing"),
        ({"sizes": [{"stages": 5, "micro_batches": 20}]}, "dualpipe: stages: found 5"),
        ({"durations": {"odd": {"forward": 0}}}, "durations.odd.forward: found 0"),
        ({"durations": {"table_4": ARGUMENTS["durations"]["equal"]}}, "'table_4' is among"),
        ({"drawing": SMALL["drawing"] | {"durations": "equl"}}, "did you mean 'equal'"),
        (
            {"steps": {"fast": ARGUMENTS["steps"]["table_4"] | {"backward": 0.1}}},
            "steps.fast.backward_input: found -",
        ),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(UserError, match=message):
        pipeline_schedules(**SMALL | change)


def test_figures_are_drawn_from_the_records(results_of):
    results = results_of("pipeline_schedules", pipeline_schedules(**SMALL))
    for module in (gantt, pipeline_bubbles):
        [(experiment, figure)] = module.draw(results).values()
        assert experiment == "pipeline_schedules"
        figure.canvas.draw()
    [(_, figure)] = gantt.draw(results).values()
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[2] == "dualpipe, 4 stages, 8 micro-batches"


def test_figures_need_their_records(results_of):
    results = results_of("other", [{"metric": "m", "value": 1.0, "unit": "1", "labels": {}}])
    assert gantt.draw(results) == pipeline_bubbles.draw(results) == {}


def test_a_trace_is_complete_events_of_one_thread_per_rank(tmp_path, capsys):
    path = tmp_path / "trace.json"
    arguments = ["--schedule", "dualpipe", "--stages", "8", "--micro-batches", "20"]
    trace.main([*arguments, "--output", str(path)])
    assert capsys.readouterr().out == f"{path}\n"
    events = json.loads(path.read_text())["traceEvents"]
    program = build("dualpipe", 8, 20)
    for rank, operations in enumerate(program.ranks):
        of_rank = [event for event in events if event["tid"] == rank]
        assert all(isinstance(event["name"], str) and event["pid"] == 0 for event in of_rank)
        [named, *complete] = of_rank
        assert (named["ph"], named["args"]) == ("M", {"name": f"rank {rank}"})
        assert [event["ph"] for event in complete] == ["X"] * len(operations)
        ends = [0] + [event["ts"] + event["dur"] for event in complete]
        assert all(event["ts"] >= end for event, end in zip(complete, ends, strict=False))
        # Work of 20 micro-batches at 3 ms, in microseconds.
        assert sum(event["dur"] for event in complete) == 60_000
    assert max(event.get("ts", 0) + event.get("dur", 0) for event in events) == 66_000


def test_bad_options_of_the_trace_are_answered_in_one_line(tmp_path, capsys):
    arguments = ["--stages", "8", "--micro-batches", "20", "--output", str(tmp_path / "t.json")]
    for options, message in (
        (["--schedule", "dualpip"], "found 'dualpip' (did you mean 'dualpipe'?)"),
        (["--schedule", "zb1p", "--forward", "0"], "durations: forward: found 0.0"),
    ):
        with pytest.raises(SystemExit):
            trace.main([*options, *arguments])
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "t.json").exists()
