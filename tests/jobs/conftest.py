"""A small workflow whose jobs have run, for what reads or damages their results."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.config.catalog import load_catalog
from harness.files import write_json
from harness.jobs import run_job
from harness.jobs.context import Context
from harness.plan.job import Job

CONFIG = Path(__file__).parents[2] / "config"
EXPERIMENT = {
    "optimizers": ["adamw"],
    "baseline": "adamw",
    "datasets": ["spam"],
    "training": {"steps": 4, "batch_size": 2, "sequence_length": 64, "log_interval": 2,
                 "evaluation_interval": 2, "evaluation_batches": 1, "recording_interval": None},
    "seeds": {"tuning": [9], "reporting": [0]},
    "evaluation": {"tasks": ["heldout_completion"], "documents": 1},
}  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder in which all jobs have run in this process."""
    folder = tmp_path_factory.mktemp("finished")
    config = Path(shutil.copytree(CONFIG, folder / "config"))
    words = np.random.default_rng(0).choice(["spam ", "eggs ", "ham\n"], (40, 300))
    (folder / "texts").mkdir()
    for number, document in enumerate(words):
        (folder / "texts" / f"{number}.txt").write_text("".join(document))
    spam = {"kind": "text", "source": {"type": "local", "path": str(folder / "texts")},
            "tokenizer": {"type": "bytes"}, "validation_fraction": 0.2,
            "test_fraction": 0.2}  # fmt: skip
    with (config / "datasets.yaml").open("a") as file:
        file.write("\n" + yaml.safe_dump({"spam": spam}))
    scale = {"description": "jobs in a test", "device": "cpu", "runs_per_job": 8,
             "experiments": {"language_optimizers": EXPERIMENT}}  # fmt: skip
    (config / "scales" / "micro.yaml").write_text(yaml.safe_dump(scale))
    context = context_of(folder)
    for job in context.jobs.values():
        write_json(context.output(job), run_job(job, context))
    return folder


@pytest.fixture
def context(finished, tmp_path) -> Context:
    """A copy to change."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return context_of(tmp_path)


def context_of(folder: Path) -> Context:
    return Context(load_catalog(folder / "config", "micro"), folder / "results")


def only_job(context: Context, stage: str) -> Job:
    [job] = [job for job in context.jobs.values() if job.stage == stage]
    return job
