"""Jobs that train: the trials of a learning-rate grid, and the chosen rate on fresh seeds."""

import math
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import cache
from types import FrameType
from typing import Any

from harness.errors import Interrupted
from harness.jobs.context import Context
from harness.plan.identity import identify
from harness.plan.job import Factors, Job, Work
from harness.records.run_folder import require_summary
from harness.training.devices import leased_device

SELECTION_METRIC = "validation/loss"


def train(job: Job, context: Context) -> dict[str, Any]:
    """Train the runs of ``job`` and list them: trials, then reporting seeds at the best rate.

    The trials are its own or those of the jobs it needs. If every one diverged there is nothing to
    report: the result says so.
    """
    with _trainer(job, context) as run:
        return _result(job, context, run)


def so_far(job: Job, context: Context) -> dict[str, Any]:
    """Return the result of a job that has not ended, with the runs that have.

    Raises:
        UserError: If what a run recorded is damaged.
    """
    runs: list[dict[str, Any]] = []

    def find(item: Work) -> dict[str, Any]:
        entry = _entry(item)
        if context.run_folder(entry["run_id"]).summary() is None:
            raise _NotEnded
        runs.append(entry)
        return entry

    if all(context.output(context.job(name)).is_file() for name in _tuned_by(job, context)):
        with suppress(_NotEnded):
            return _result(job, context, find)
    return {"runs": runs}


class _NotEnded(Exception):
    """A run has not been trained yet, so what depends on it has not either."""


def _result(job: Job, context: Context, run: Callable[[Work], dict[str, Any]]) -> dict[str, Any]:
    runs = [run(item) for item in job.work if item.role == "tuning"]
    reporting = [item for item in job.work if item.role == "reporting"]
    if any("learning_rate" not in item.spec for item in reporting):
        trials = runs + [
            trial for name in _tuned_by(job, context) for trial in context.result(name)["runs"]
        ]
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


def _tuned_by(job: Job, context: Context) -> list[str]:
    return [name for name in job.needs if context.job(name).stage == "tune"]


def _entry(item: Work) -> dict[str, Any]:
    """Return how a run is listed in the result of its job."""
    run_id = identify(run_prefix(item.factors), item.spec)
    return {"run_id": run_id, "factors": asdict(item.factors), "role": item.role}


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
    """Yield what trains one run, unless it has been, and returns its entry in the result.

    The first run that has to be trained leases a device and imports torch, which takes seconds: an
    experiment often lists runs that another one has trained.
    """
    scale = context.catalog.scale
    data = context.dataset_folder(job)
    with ExitStack() as held:

        @cache
        def device() -> str:
            sharing = scale.jobs_per_gpu
            lease = leased_device(scale.device, context.device_key, sharing=sharing)
            name = held.enter_context(lease)
            from harness.processor import set_up_processor

            set_up_processor(scale.threads)
            return name

        def run(item: Work) -> dict[str, Any]:
            entry = _entry(item)
            run_id = entry["run_id"]
            folder = context.run_folder(run_id)
            keep_weights = item.role == "reporting"
            summary = folder.outcome(keep_weights)
            if summary is None:
                place = device()
                from harness.training.loop import run_training

                with stop_signals() as stop:
                    summary = run_training(
                        item.spec,
                        folder,
                        data,
                        place,
                        coefficients_of(item, context),
                        checkpoint_seconds=scale.checkpoint_seconds,
                        keep_weights=keep_weights,
                        progress=_progress(run_id),
                        stop=stop,
                        shared_device=scale.jobs_per_gpu > 1,
                    )
                    if stop():
                        raise Interrupted("stopped between two runs")
            print(f"{run_id}: {summary['status']}", file=sys.stderr, flush=True)
            return entry

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
