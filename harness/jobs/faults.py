"""The job that flips bits in training, one at a time, and records what each of them does."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any

import torch

from harness.errors import Interrupted, UserError
from harness.jobs.context import Context
from harness.jobs.train import coefficients_of, run_prefix, stop_signals
from harness.plan.identity import identify
from harness.plan.job import Job, Work
from harness.processor import set_up_processor
from harness.records.run_folder import RunFolder
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from harness.training.compilation import set_float32_products
from harness.training.devices import leased_device
from harness.training.faults import (
    Course,
    Fault,
    FaultInjector,
    outcome,
    plan_faults,
    restore,
    state_of,
)
from harness.training.step import TrainingStep

UNITS = {"peak_change": "nats", "first_change": "nats", "validation_change": "nats",
         "reference_loss": "nats", "repeated_change": "nats", "recovery_steps": "step"}  # fmt: skip
LABELS = ("target", "part", "bit", "draw")


def inject_faults(job: Job, context: Context) -> dict[str, Any]:
    """Return what every fault of ``job`` did, as records.

    Each run keeps its trained state and the outcomes so far, so that a stopped job goes on with
    the next fault.

    Raises:
        Interrupted: When a signal asks for it.
        UserError: If training does not get as far as the faults, or has no such values.
    """
    records: list[dict[str, Any]] = []
    with (
        leased_device(context.catalog.scale.device, context.device_key) as device,
        stop_signals() as stop,
    ):
        set_up_processor(context.catalog.scale.threads)
        set_float32_products()
        for item in job.work:
            run_id = identify(f"faults.{run_prefix(item.factors)}", item.spec)
            folder = context.run_folder(run_id)
            with folder.lock():
                rows = _outcomes(item, folder, job, context, torch.device(device), stop)
            print(f"{run_id}: {len(rows) - 1} faults", file=sys.stderr, flush=True)
            common = {"run_id": run_id, **asdict(item.factors)}
            records += [common | record for row in rows for record in _records(item, row)]
    return {"records": records}


def _outcomes(
    item: Work,
    folder: RunFolder,
    job: Job,
    context: Context,
    device: torch.device,
    stop: Callable[[], bool],
) -> list[dict[str, Any]]:
    """Return one row for the course without a fault and one per fault, old ones from the folder."""
    options = item.spec["faults"]
    faults = plan_faults(
        options["targets"],
        options["parts"],
        options["bits"],
        options["draws"],
        item.spec["seed"],
    )
    known = {_key(row) for row in folder.metrics()}
    left = [fault for fault in faults if _key(asdict(fault)) not in known]
    if not left:
        return folder.metrics()
    folder.write_spec(item.spec)
    where = f"{context.catalog.folder}/experiments/{job.experiment}.yaml: faults"
    with closing(_trained(item, folder, job, context, device, where, stop)) as step:
        injector = FaultInjector(step, options["step"], options["observe"])
        injector.check(options["targets"], options["parts"], where)
        reference = _reference(injector, folder, where)
        for done, fault in enumerate(left, len(faults) - len(left)):
            if stop():
                raise Interrupted(f"stopped after {done} of {len(faults)} faults")
            if injector.holders(fault.target, fault.part):
                folder.append_metrics([_row(fault, injector, reference, options["tolerance"])])
    return folder.metrics()


def _reference(injector: FaultInjector, folder: RunFolder, where: str) -> Course:
    """Return the course without a fault, and record it where that has not been done."""
    reference = injector.course()
    if not reference.is_finite:
        raise UserError(f"{where}: training diverges without a fault; expected a learning rate at "
                        "which it does not")  # fmt: skip
    if not folder.metrics():
        # What the device alone makes of the same course twice: nothing, if it is deterministic.
        repeated = injector.course().validation - reference.validation
        metrics = {"reference_loss": reference.validation, "repeated_change": repeated}
        folder.append_metrics([dict.fromkeys(LABELS) | {"metrics": metrics}])
    return reference


def _row(
    fault: Fault, injector: FaultInjector, reference: Course, tolerance: float
) -> dict[str, Any]:
    metrics = outcome(fault.target, injector.course(fault), reference, tolerance)
    return {key: getattr(fault, key) for key in LABELS} | {"metrics": metrics}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in LABELS)


def _trained(
    item: Work,
    folder: RunFolder,
    job: Job,
    context: Context,
    device: torch.device,
    where: str,
    stop: Callable[[], bool],
) -> TrainingStep:
    """Return the run after the steps that come before all faults, trained once."""
    coefficients = coefficients_of(item, context)
    step = TrainingStep(item.spec, context.dataset_folder(job), device, coefficients)
    state = load_checkpoint(folder.checkpoints, device)
    if state is not None:
        restore(step, state)
        return step
    steps = item.spec["faults"]["step"]
    for taken in range(steps):
        loss, _ = step.take(taken)
        if stop():
            raise Interrupted(f"stopped at step {taken + 1} of {steps}, before any fault")
    if steps and not math.isfinite(loss.item()):
        raise UserError(f"{where}.step: the loss is {loss.item()} after {steps} steps, before any "
                        "fault; expected a learning rate at which training converges")  # fmt: skip
    save_checkpoint(folder.checkpoints, steps, state_of(step))
    return step


def _records(item: Work, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    training, options = item.spec["training"], item.spec["faults"]
    labels = {key: row[key] for key in LABELS if row[key] is not None}
    labels |= {
        "gradient_clip": training["gradient_clip"] or "none",
        "precision": training["precision"],
    }
    for name, value in row["metrics"].items():
        yield {
            "metric": f"fault/{name}",
            "value": value,
            "unit": UNITS.get(name, "1"),
            "step": options["step"] + options["observe"],
            "labels": labels,
        }
