"""Undoing what should be tried again: failed runs, and jobs whose runs are gone."""

import shutil

from harness.jobs.context import Context


def forget_failed(context: Context) -> list[str]:
    """Delete failed runs and the results of jobs that list a failed or missing run.

    Completed and diverged runs stay: their jobs find them again without computing anything.

    Returns:
        Names of the jobs that the next workflow repeats.
    """
    forgotten = []
    for job in context.jobs.values():
        if job.stage not in ("tune", "train") or not context.output(job).is_file():
            continue
        folders = [context.run_folder(run["run_id"]) for run in context.result(job.name)["runs"]]
        failed = [folder for folder in folders if _failed(folder.summary())]
        for folder in failed:
            shutil.rmtree(folder.path, ignore_errors=True)
        if failed:
            context.output(job).unlink()
            forgotten.append(job.name)
    return forgotten


def _failed(summary: dict | None) -> bool:
    return summary is None or summary["status"] == "failed"
