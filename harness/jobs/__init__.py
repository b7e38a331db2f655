"""What each kind of workflow job does: the code behind the rules in ``workflows/``."""

from importlib import import_module
from typing import Any

from harness.jobs.context import Context
from harness.plan.job import Job

_STAGES = {
    "check": "check.check",
    "prepare": "prepare.prepare_dataset",
    "calibrate": "calibrate.calibrate",
    "tune": "train.train",
    "train": "train.train",
    "evaluate": "evaluate.evaluate",
    "precision": "precision.precision",
    "measure": "measure.measure",
    "compute": "compute.compute",
    "faults": "faults.inject_faults",
}


def run_job(job: Job, context: Context) -> dict[str, Any]:
    """Run ``job`` and return what it found; only the module of its stage is imported."""
    module, _, function = _STAGES[job.stage].partition(".")
    return getattr(import_module(f"harness.jobs.{module}"), function)(job, context)
