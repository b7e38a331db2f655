"""The job that evaluates a closed form or a simulation."""

from importlib import import_module
from typing import Any

from harness.errors import UserError, closest
from harness.jobs.context import Context
from harness.plan.job import Job


def compute(job: Job, context: Context) -> dict[str, Any]:
    """Call the function of ``job`` and return its records.

    Raises:
        UserError: If there is no such function or it refuses the arguments.
    """
    [item] = job.work
    where = f"{context.catalog.folder}/experiments/{job.experiment}.yaml"
    path, _, name = item.spec["function"].rpartition(".")
    try:
        module = import_module(path)
    except ImportError as error:
        raise UserError(f"{where}: function: module '{path}' cannot be imported: {error}") from None
    if not hasattr(module, name):
        raise UserError(f"{where}: function: found '{name}'{closest(name, vars(module))}")
    return {"records": getattr(module, name)(**item.spec["arguments"])}
