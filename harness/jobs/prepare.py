"""The job that prepares one dataset."""

from typing import Any

from harness.data import prepare
from harness.jobs.context import Context
from harness.plan.job import Job


def prepare_dataset(job: Job, context: Context) -> dict[str, Any]:
    """Prepare the dataset of ``job`` in its folder and return the manifest."""
    [item] = job.work
    where = f"{context.catalog.folder}/datasets.yaml: {item.factors.dataset}"
    return prepare(item.spec, context.output(job).parent, where)
