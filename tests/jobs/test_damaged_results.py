"""Damaged results end a job with one line: no other choice, no fewer losses, no lost run."""

import shutil
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.files import write_json
from harness.jobs import run_job
from harness.jobs.collect import collect
from harness.jobs.context import Context
from harness.jobs.evaluate import evaluate
from harness.jobs.forget import forget_failed
from harness.jobs.train import best_learning_rate
from harness.jobs.trained_model import load_trained
from harness.optimizers.calibration import resolve_coefficients
from harness.records.run_folder import RunFolder
from tests.jobs.conftest import only_job


def trials_of(context: Context) -> list[dict]:
    runs = context.result(only_job(context, "train").name)["runs"]
    return [run for run in runs if run["role"] == "tuning"]


def reported(context: Context) -> RunFolder:
    """Return the only run that is more than a trial."""
    [run] = context.reported_runs(only_job(context, "train").name)
    return context.run_folder(run["run_id"])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {"cut": halve, "emptied": lambda path: path.write_bytes(b""), "deleted": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_trial_whose_metrics_are_damaged_changes_no_choice(context, damage):
    trials = trials_of(context)
    best = best_learning_rate(trials, context)
    [run] = [run for run in trials if run["factors"]["learning_rate"] == best]
    damage(context.run_folder(run["run_id"]).path / "metrics.jsonl")
    with pytest.raises(UserError, match=rf"{run['run_id']}/metrics\.jsonl: "):
        best_learning_rate(trials, context)


def test_a_trial_that_is_gone_changes_no_choice(context):
    trials = trials_of(context)
    shutil.rmtree(context.run_folder(trials[0]["run_id"]).path)
    with pytest.raises(UserError, match=r"summary\.json: no such file, but a job lists this run"):
        best_learning_rate(trials, context)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_reported_losses_are_not_dropped(context, damage):
    folder = reported(context)
    damage(folder.path / "metrics.jsonl")
    with pytest.raises(UserError, match=rf"{folder.run_id}/metrics\.jsonl: "):
        collect(context)


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_damaged_or_missing_result_of_a_job_is_named(context, stage):
    job = only_job(context, stage)
    halve(context.output(job))
    with pytest.raises(UserError, match=r"\.json: found no JSON"):
        collect(context)
    context.output(job).unlink()
    with pytest.raises(UserError, match=r"\.json: no such file; expected the result of a job"):
        collect(context)


def test_damaged_scores_and_weights_are_named(context):
    folder = reported(context)
    [scores] = folder.path.glob("evaluation-*.json")
    halve(scores)
    with pytest.raises(UserError, match=r"evaluation-\w+\.json: found no JSON"):
        evaluate(only_job(context, "evaluate"), context)
    halve(folder.weights)
    with pytest.raises(UserError, match=r"weights\.safetensors: found no whole weights"):
        load_trained(folder, folder.summary())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"{}"])
def test_damaged_coefficients_are_named(tmp_path, content):
    spec = {"published": False}
    resolve_coefficients([(4, 8)], spec, tmp_path)
    [path] = tmp_path.iterdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"4x8-\w+\.json: found no coefficients"):
        resolve_coefficients([(4, 8)], spec, tmp_path)


def test_forgetting_a_failed_run_keeps_its_checkpoint(context):
    job, folder = only_job(context, "train"), reported(context)
    folder.checkpoints.mkdir(exist_ok=True)
    (folder.checkpoints / "latest.json").write_text("{}")
    folder.write_summary(folder.summary() | {"status": "failed"})
    assert forget_failed(context) == [job.name]
    assert folder.summary() is None
    assert (folder.checkpoints / "latest.json").is_file()
    assert not context.output(job).exists()


@pytest.mark.parametrize("damaged", ["summary of a run", "result of a job"])
def test_forgetting_copes_with_what_is_damaged(context, damaged):
    job, folder = only_job(context, "train"), reported(context)
    before = folder.metrics()
    halve(folder.path / "summary.json" if damaged == "summary of a run" else context.output(job))
    assert forget_failed(context) == [job.name]
    write_json(context.output(job), run_job(job, context))
    assert (folder.summary()["status"], folder.metrics()) == ("completed", before)
    collect(context)


def test_forgetting_leaves_completed_and_diverged_runs(context):
    folder = reported(context)
    folder.write_summary(folder.summary() | {"status": "diverged"})
    assert forget_failed(context) == []
    assert folder.summary()["status"] == "diverged"
