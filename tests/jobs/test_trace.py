"""`harness trace` on a job of a small scale."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from harness.cli import main
from harness.config.catalog import load_catalog
from harness.files import write_json
from harness.jobs import run_job
from harness.jobs.context import Context

CONFIG = Path(__file__).parents[2] / "config"
SWEEP = {
    "optimizers": ["adamw"],
    "datasets": ["little_text"],
    "training": {"steps": 8, "batch_size": 2, "sequence_length": 16, "recording_interval": None},
    "seeds": {"tuning": [9], "reporting": [0]},
    "evaluation": None,
}
DATASET = {
    "kind": "text",
    "source": {"type": "python_standard_library"},
    "tokenizer": {"type": "bytes"},
    "validation_fraction": 0.2,
    "test_fraction": 0.2,
    "maximum_bytes": 1_000_000,
}
# One run in a job: the trials come before the reported run, which waits for its learning rate.
SCALE = {"description": "one sweep", "device": "cpu", "experiments": {"language_optimizers": SWEEP}}


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    folder = tmp_path_factory.mktemp("trace")
    config = Path(shutil.copytree(CONFIG, folder / "config"))
    (config / "scales" / "micro.yaml").write_text(yaml.safe_dump(SCALE))
    with (config / "datasets.yaml").open("a") as file:
        file.write(yaml.safe_dump({"little_text": DATASET}))
    context = Context(load_catalog(config, "micro"), folder / "results")
    for job in context.jobs.values():
        if job.stage == "prepare":
            write_json(context.output(job), run_job(job, context))
    return context


def trace(context: Context, name: str, output: Path) -> int:
    folder = context.results.parent
    options = ["--config", folder / "config", "--results", context.results, "--scale", "micro"]
    return main(["trace", *map(str, options), "--name", name, "--output", str(output)])


def job_of(context: Context, stage: str) -> str:
    return next(name for name, job in context.jobs.items() if job.stage == stage)


def test_a_tuning_job_is_traced_and_no_run_is_touched(context, tmp_path):
    output = tmp_path / "trace.json"
    assert trace(context, job_of(context, "tune"), output) == 0
    names = {event.get("name") for event in json.loads(output.read_text())["traceEvents"]}
    assert {"step 3", "step 4", "step 5"} <= names
    assert not (context.results / "runs").exists()


def test_a_wrong_job_is_named_with_the_nearest_right_one(context, tmp_path, capsys):
    tuning = job_of(context, "tune")
    assert trace(context, tuning[:-2], tmp_path / "trace.json") == 2
    error = capsys.readouterr().err
    assert f"expected a job that trains (did you mean '{tuning[:-2]}" in error
    assert trace(context, job_of(context, "train"), tmp_path / "trace.json") == 2
    assert "whose learning rate is yet to be tuned" in capsys.readouterr().err
    assert not (tmp_path / "trace.json").exists()
