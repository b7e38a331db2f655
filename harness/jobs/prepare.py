"""The job that prepares one dataset."""

import os
from pathlib import Path
from typing import Any

from harness.data import prepare
from harness.errors import Interrupted
from harness.jobs.context import Context
from harness.plan.job import Job


def prepare_dataset(job: Job, context: Context) -> dict[str, Any]:
    """Prepare the dataset of ``job`` in its folder and return the manifest.

    Raises:
        Interrupted: On Ctrl-C; the next preparation goes on from the last progress.
    """
    [item] = job.work
    where = f"{context.catalog.folder}/datasets.yaml: {item.factors.dataset}"
    # Without the `..` of a place that all scales share, for messages.
    folder = Path(os.path.normpath(context.output(job).parent))
    try:
        return prepare(item.spec, folder, where)
    except KeyboardInterrupt:
        raise Interrupted(f"{folder} is not yet prepared") from None
