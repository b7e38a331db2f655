"""Records of a scale that is not complete: of the jobs and runs that are done, and no others."""

import json

import pytest

from harness.cli import main
from harness.errors import UserError
from harness.jobs.collect import collect, collect_so_far
from harness.plan.job import Job
from harness.records.store import load_records, load_runs
from harness.reporting.results import Results
from tests.jobs.conftest import only_job


def run_ids(job: Job, context) -> list[str]:
    return [run["run_id"] for run in context.result(job.name)["runs"]]


def test_of_a_whole_scale_both_are_the_same(context):
    collect(context)
    folder = collect_so_far(context)
    for name in ("records.parquet", "runs.parquet", "plan.json"):
        assert (folder / name).read_bytes() == (context.scale_folder / name).read_bytes()
    assert Results(folder).missing == {}


def test_jobs_without_a_result_are_listed(context):
    job = only_job(context, "evaluate")
    collect(context)
    whole = load_records(context.scale_folder)
    context.output(job).unlink()
    results = Results(collect_so_far(context))
    assert results.missing == {"language_optimizers": [job.name]}
    scores = whole["metric"].str.startswith("lm_eval/")
    assert scores.any()
    assert len(results.records) == len(whole) - scores.sum()


@pytest.mark.parametrize("ended", range(4))
def test_of_a_job_that_was_stopped_the_runs_that_ended_count(context, ended):
    job = only_job(context, "train")
    ids = run_ids(job, context)
    assert len(ids) > 4
    for stage in ("train", "evaluate"):
        context.output(only_job(context, stage)).unlink()
    for run_id in ids[ended:]:
        context.run_folder(run_id).drop_summary()
    folder = collect_so_far(context)
    assert list(load_runs(folder)["run_id"]) == ids[:ended]
    assert set(load_records(folder)["run_id"]) == set(ids[:ended])


def test_reported_runs_count_once_their_trials_chose_the_rate(context):
    job = only_job(context, "train")
    ids = run_ids(job, context)
    context.output(job).unlink()
    runs = load_runs(collect_so_far(context))
    assert list(runs["run_id"]) == ids
    assert list(runs["role"])[-1] == "reporting"


def test_nothing_yet_is_one_line(context):
    for job in context.jobs.values():
        context.output(job).unlink()
    with pytest.raises(UserError, match=r"micro: found no results yet, expected some of the \d+"):
        collect_so_far(context)


def test_the_command_says_how_to_read_what_there_is(context, monkeypatch, capsys):
    monkeypatch.chdir(context.results.parent)
    context.output(only_job(context, "evaluate")).unlink()
    assert main(["collect", "--so-far", "--scale", "micro"]) == 0
    assert capsys.readouterr().out == (
        "report: snakemake report --config records=results/micro/so_far\n"
    )
    plan = json.loads((context.scale_folder / "so_far" / "plan.json").read_text())
    assert plan["jobs"] == len(context.jobs)
