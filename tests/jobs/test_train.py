"""What a training job does around its runs."""

import os
import signal

import pytest

import harness.jobs.train as job_module
from harness.errors import Interrupted
from harness.jobs.train import train
from tests.jobs.conftest import only_job


def unavailable(*_, **__):
    raise AssertionError("asked for a device")


def test_runs_that_are_there_are_listed_without_a_device(context, monkeypatch):
    job = only_job(context, "train")
    monkeypatch.setattr(job_module, "leased_device", unavailable)
    assert train(job, context) == context.result(job.name)


def test_a_reported_run_without_its_weights_is_trained_again(context):
    job = only_job(context, "train")
    result = context.result(job.name)
    folder = context.run_folder(result["runs"][-1]["run_id"])
    before = folder.metrics()
    folder.weights.unlink()
    assert train(job, context) == result
    assert folder.weights.is_file()
    assert folder.metrics() == before


def test_a_signal_stops_between_two_runs(context, monkeypatch):
    job = only_job(context, "train")
    first, second, *_ = (
        context.run_folder(run["run_id"]) for run in context.result(job.name)["runs"]
    )
    for folder in (first, second):
        folder.drop_summary()
    write_summary = type(first).write_summary

    def stopped(folder, summary):
        write_summary(folder, summary)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(type(first), "write_summary", stopped)
    with pytest.raises(Interrupted, match="between two runs"):
        train(job, context)
    assert first.summary()["status"] == "completed"
    assert second.summary() is None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
