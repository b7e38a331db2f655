"""Jobs that train: the trials of a learning-rate grid, and the chosen rate on fresh seeds."""

import math
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import FrameType
from typing import Any

from harness.errors import Interrupted
from harness.jobs.context import Context
from harness.plan.identity import identify
from harness.plan.job import Factors, Job, Work
from harness.training.devices import leased_device

SELECTION_METRIC = "validation/loss"


def tune(job: Job, context: Context) -> dict[str, Any]:
    """Train the trials of ``job`` and list them."""
    return {"runs": _train(job, context, list(job.work), role="tuning")}


def train(job: Job, context: Context) -> dict[str, Any]:
    """Train the reporting seeds of ``job`` at the learning rate with the best tuning result.

    If every trial diverged there is nothing to report: the result says so instead of runs.
    """
    work = list(job.work)
    if any("learning_rate" not in item.spec for item in work):
        rate = best_learning_rate(job, context)
        if rate is None:
            return {"runs": [], "reason": "every learning rate of the grid diverged or failed"}
        work = [
            Work(
                factors=replace(item.factors, learning_rate=rate),
                spec=item.spec | {"learning_rate": rate},
            )
            for item in work
        ]
    return {"runs": _train(job, context, work, role="reporting")}


def best_learning_rate(job: Job, context: Context) -> float | None:
    """Return the rate with the lowest mean validation loss over the tuning seeds of ``job``.

    A rate at which some seed did not complete is not a candidate.
    """
    losses: dict[float, list[float]] = defaultdict(list)
    for name in job.needs:
        if context.job(name).stage == "tune":
            for run in context.result(name)["runs"]:
                losses[run["factors"]["learning_rate"]].append(_final_loss(context, run["run_id"]))
    means = {rate: sum(values) / len(values) for rate, values in losses.items()}
    rate = min(means, key=means.__getitem__)
    return rate if math.isfinite(means[rate]) else None


def _final_loss(context: Context, run_id: str) -> float:
    folder = context.run_folder(run_id)
    summary = folder.summary()
    if summary is None or summary["status"] != "completed":
        return math.inf
    rows = [row for row in folder.metrics() if row["metric"] == SELECTION_METRIC]
    return rows[-1]["value"] if rows else math.inf


def _train(job: Job, context: Context, work: list[Work], role: str) -> list[dict[str, Any]]:
    scale = context.catalog.scale
    where = f"{context.catalog.folder}/scales/{context.catalog.scale_name}.yaml: device"
    listed = []
    with leased_device(scale.device, where) as device, stop_signals() as stop:
        import torch

        from harness.training.loop import run_training

        torch.set_num_threads(scale.threads)
        data = context.dataset_folder(job)
        for item in work:
            if stop():
                raise Interrupted("stopped between two runs")
            run_id = identify(_prefix(item.factors), item.spec)
            summary = run_training(
                item.spec,
                context.run_folder(run_id),
                data,
                device,
                _coefficients(item, context),
                checkpoint_seconds=scale.checkpoint_seconds,
                keep_weights=role == "reporting",
                progress=_progress(run_id),
                stop=stop,
            )
            print(f"{run_id}: {summary['status']}", file=sys.stderr, flush=True)
            listed.append({"run_id": run_id, "factors": asdict(item.factors), "role": role})
    return listed


def _prefix(factors: Factors) -> str:
    return f"{factors.model}.{factors.dataset}.{factors.optimizer}.s{factors.seed}"


def _coefficients(
    item: Work, context: Context
) -> dict[tuple[int, int], tuple[float, float, float]] | None:
    calibration = item.spec["optimizer"]["calibration"]
    if calibration is None:
        return None
    # Only calibrated optimizers pay for importing what fits their coefficients.
    from harness.jobs.calibrate import calibrated_triples

    return calibrated_triples(str(item.factors.model), calibration, context)


def _progress(run_id: str) -> Callable[[int, int, float], None]:
    def show(step: int, steps: int, loss: float) -> None:
        print(f"{run_id}: step {step}/{steps} loss {loss:.4f}", file=sys.stderr, flush=True)

    return show


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and SIGINT into a question that training asks between steps."""
    received: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        received.append(number)

    previous = {sig: signal.signal(sig, remember) for sig in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)
