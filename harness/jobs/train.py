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
from harness.records.run_folder import require_summary
from harness.training.devices import leased_device

SELECTION_METRIC = "validation/loss"


def tune(job: Job, context: Context) -> dict[str, Any]:
    """Train the trials of ``job`` and list them."""
    with _trainer(job, context) as run:
        return {"runs": [run(item) for item in job.work]}


def train(job: Job, context: Context) -> dict[str, Any]:
    """Train the reporting seeds of ``job`` at the learning rate with the best tuning result.

    The trials are its own or those of the jobs it needs. If every one diverged there is nothing to
    report: the result says so.
    """
    with _trainer(job, context) as run:
        runs = [run(item) for item in job.work if item.role == "tuning"]
        reporting = [item for item in job.work if item.role == "reporting"]
        if any("learning_rate" not in item.spec for item in reporting):
            earlier = [name for name in job.needs if context.job(name).stage == "tune"]
            trials = runs + [trial for name in earlier for trial in context.result(name)["runs"]]
            rate = best_learning_rate(trials, context)
            if rate is None:
                return {"runs": runs, "unreported": "every learning rate of the grid diverged or "
                        "failed"}  # fmt: skip
            reporting = [
                replace(
                    item,
                    factors=replace(item.factors, learning_rate=rate),
                    spec=item.spec | {"learning_rate": rate},
                )
                for item in reporting
            ]
        return {"runs": runs + [run(item) for item in reporting]}


def best_learning_rate(trials: list[dict[str, Any]], context: Context) -> float | None:
    """Return the rate with the lowest mean validation loss over the tuning seeds.

    A rate at which some seed did not complete is not a candidate.

    Args:
        trials: Listed runs of one sweep.
        context: Where they are.

    Raises:
        UserError: If what a trial recorded is damaged or gone.
    """
    losses: dict[float, list[float]] = defaultdict(list)
    for trial in trials:
        loss = _final_loss(context, trial["run_id"])
        losses[trial["factors"]["learning_rate"]].append(loss)
    means = {rate: sum(values) / len(values) for rate, values in losses.items()}
    rate = min(means, key=means.__getitem__)
    return rate if math.isfinite(means[rate]) else None


def _final_loss(context: Context, run_id: str) -> float:
    folder = context.run_folder(run_id)
    summary = require_summary(folder)
    if summary["status"] != "completed":
        return math.inf
    last = (SELECTION_METRIC, summary["spec"]["training"]["steps"])
    rows = folder.recorded_metrics(summary)
    # Only finite numbers are recorded: a last loss that was none has no row.
    return next((row["value"] for row in rows if (row["metric"], row["step"]) == last), math.inf)


@contextmanager
def _trainer(job: Job, context: Context) -> Iterator[Callable[[Work], dict[str, Any]]]:
    """Lease a device and yield what trains one run on it and returns its entry in the result."""
    scale = context.catalog.scale
    sharing = scale.jobs_per_gpu
    with (
        leased_device(scale.device, context.device_key, sharing=sharing) as device,
        stop_signals() as stop,
    ):
        from harness.processor import set_up_processor
        from harness.training.loop import run_training

        set_up_processor(scale.threads)
        data = context.dataset_folder(job)

        def run(item: Work) -> dict[str, Any]:
            if stop():
                raise Interrupted("stopped between two runs")
            run_id = identify(run_prefix(item.factors), item.spec)
            summary = run_training(
                item.spec,
                context.run_folder(run_id),
                data,
                device,
                coefficients_of(item, context),
                checkpoint_seconds=scale.checkpoint_seconds,
                keep_weights=item.role == "reporting",
                progress=_progress(run_id),
                stop=stop,
                shared_device=sharing > 1,
            )
            print(f"{run_id}: {summary['status']}", file=sys.stderr, flush=True)
            return {"run_id": run_id, "factors": asdict(item.factors), "role": item.role}

        yield run


def run_prefix(factors: Factors) -> str:
    """Return the readable part of a run's id."""
    return f"{factors.model}.{factors.dataset}.{factors.optimizer}.s{factors.seed}"


def coefficients_of(
    item: Work, context: Context
) -> dict[tuple[int, int], tuple[float, float, float]] | None:
    """Return the calibrated coefficients by matrix shape of a run, None if it needs none."""
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
