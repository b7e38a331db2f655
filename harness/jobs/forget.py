"""Undoing what should be tried again: failed runs, and jobs whose runs are gone."""

from harness.errors import UserError
from harness.jobs.context import Context
from harness.records.run_folder import RunFolder


def forget_failed(context: Context) -> list[str]:
    """Drop the outcome of failed runs, and results of jobs that list a failed or missing run.

    A damaged summary or result counts as missing. A failed run keeps all but its summary and goes
    on from its last checkpoint: what failed may have nothing to do with it, and a step that fails
    by itself would do so from step 0 as well. Completed and diverged runs stay: their jobs find
    them again without computing anything.

    Returns:
        Names of the jobs that the next workflow repeats.
    """
    forgotten = []
    for job in context.jobs.values():
        if job.stage not in ("tune", "train") or not context.output(job).is_file():
            continue
        runs = _listed(job.name, context)
        failed = [folder for folder in runs or () if _failed(folder)]
        for folder in failed:
            folder.drop_summary()
        if failed or runs is None:
            context.output(job).unlink()
            forgotten.append(job.name)
    return forgotten


def _listed(name: str, context: Context) -> list[RunFolder] | None:
    """Return the runs that a job lists, None if its result is damaged."""
    try:
        result = context.result(name)
    except UserError:
        return None
    return [context.run_folder(run["run_id"]) for run in result["runs"]]


def _failed(folder: RunFolder) -> bool:
    try:
        summary = folder.summary()
    except UserError:
        return True
    return summary is None or summary["status"] == "failed"
