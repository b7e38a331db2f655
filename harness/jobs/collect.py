"""From the results of all jobs to the two tables of a scale: records and runs."""

import json
from collections.abc import Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.errors import UserError
from harness.files import write_json
from harness.jobs.context import Context
from harness.jobs.train import so_far
from harness.models.counts import CacheContent, cached_elements
from harness.plan.job import Job
from harness.plan.summary import summarise
from harness.records.run_folder import require_summary
from harness.records.store import RECORD_COLUMNS, RUN_COLUMNS, write_table

BFLOAT16_BYTES = 2
# Folder in that of a scale for the records of a part of its jobs.
SO_FAR = "so_far"
# Stages whose jobs return records.
RECORDING = ("calibrate", "evaluate", "precision", "measure", "compute", "faults")


def collect(context: Context) -> None:
    """Write ``records.parquet``, ``runs.parquet`` and ``plan.json`` of the context's scale.

    Raises:
        UserError: If a job has no result yet, or what a job or a run recorded is damaged or gone.
    """
    _write(context, context.scale_folder, frozenset())


def collect_so_far(context: Context) -> Path:
    """Write the three files for what there is, and return their folder.

    The plan lists the jobs without a result. Of those that train, the runs that have ended count.

    Raises:
        UserError: If there are no results yet, or what a job or a run recorded is damaged or gone.
    """
    missing = frozenset(
        name for name, job in context.jobs.items() if not context.output(job).is_file()
    )
    if len(missing) == len(context.jobs):
        raise UserError(f"{context.scale_folder}: found no results yet, expected some of the "
                        f"{len(missing)} jobs of the scale")  # fmt: skip
    folder = context.scale_folder / SO_FAR
    _write(context, folder, missing)
    return folder


def _write(context: Context, folder: Path, missing: Set[str]) -> None:
    records: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for job in context.jobs.values():
        if job.stage in ("tune", "train"):
            result = so_far(job, context) if job.name in missing else context.result(job.name)
            for run in result["runs"]:
                its_records, row = _training_run(context, job, run)
                records.extend(its_records)
                runs.append(row)
            if "unreported" in result:
                runs.extend(_unreported(job, result["unreported"]))
        elif job.stage in RECORDING and job.name not in missing:
            records.extend(
                _job_record(job, record) for record in context.result(job.name)["records"]
            )
    plan = summarise(context.catalog, context.jobs)
    plan |= {"jobs": len(context.jobs), "missing": _by_part(context, missing)}
    write_table(pd.DataFrame(records), RECORD_COLUMNS, folder / "records.parquet")
    write_table(pd.DataFrame(runs), RUN_COLUMNS, folder / "runs.parquet")
    write_json(folder / "plan.json", plan)


def _by_part(context: Context, missing: Set[str]) -> dict[str, list[str]]:
    """Return the missing jobs by experiment, or by stage where they serve several experiments."""
    parts: dict[str, list[str]] = {}
    for job in context.jobs.values():
        if job.name in missing:
            parts.setdefault(job.experiment or job.stage, []).append(job.name)
    return parts


def _training_run(
    context: Context, job: Job, run: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    folder = context.run_folder(run["run_id"])
    summary = require_summary(folder)
    common = {
        "experiment": job.experiment,
        "run_id": run["run_id"],
        "role": run["role"],
        "labels": "{}",
        **run["factors"],
    }
    records = [common | row for row in folder.recorded_metrics(summary)]
    if summary["status"] == "completed":
        records += [common | row for row in _whole_run(job, summary)]
    row = {
        key: json.dumps(summary[key], sort_keys=True) if key in ("spec", "environment") else
        summary[key]
        for key in ("status", "reason", "spec", "environment", "started", "seconds")
    }  # fmt: skip
    return records, common | row


def _whole_run(job: Job, summary: dict[str, Any]) -> list[dict[str, Any]]:
    examples = "token/s" if job.work[0].spec["task"] == "language" else "image/s"
    values = [
        ("time/step", summary["seconds_per_step"], "s"),
        ("throughput", summary["examples_per_second"], examples),
        ("memory/peak", summary["peak_memory_bytes"], "B"),
        ("model_flops", summary["model_flops_per_second"], "FLOP/s"),
        ("utilization/bfloat16_peak", summary["utilization"], "1"),
        (f"energy/{summary['energy_source']}", summary["joules"], "J"),
        *((f"time/{phase}", value, "s") for phase, value in summary["phase_seconds"].items()),
        ("accumulation", summary["accumulation"], "1"),
        ("out_of_memory_retries", summary["out_of_memory_retries"], "1"),
        ("parameters", summary["parameters"], "1"),
        ("memory/cache_per_token", _cache_bytes(job.work[0].spec), "B"),
    ]
    return [
        {"metric": metric, "value": value, "unit": unit}
        for metric, value, unit in values
        if value is not None
    ]


def _cache_bytes(spec: dict[str, Any]) -> int | None:
    """Return what decoding keeps per token of one sequence in bfloat16; None without decoding."""
    if spec["task"] != "language":
        return None
    model = validate(ModelSpec, spec["model"], "model")
    content: CacheContent = "latent" if model.attention.kind == "mla" else "heads"
    return BFLOAT16_BYTES * model.num_hidden_layers * cached_elements(model, content)


def _unreported(job: Job, reason: str) -> list[dict[str, Any]]:
    """Rows for the seeds that could not be reported, so that no table drops them silently."""
    return [
        {
            "experiment": job.experiment,
            "run_id": f"{job.name}.s{item.factors.seed}",
            "role": "reporting",
            "status": "diverged",
            "reason": reason,
            "spec": json.dumps(item.spec, sort_keys=True),
            "environment": "{}",
            **asdict(item.factors),
        }
        for item in job.work
        if item.role == "reporting"
    ]


def _job_record(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    """Lay a job's record into the columns of the store; what it does not say is not known."""
    factors = {"model": None, "dataset": None, "optimizer": None, "run_id": job.name}
    experiment = job.experiment or job.stage.replace("calibrate", "calibration")
    roles = {"calibrate": "compute", "evaluate": "reporting", "precision": "reporting",
             "faults": "reporting"}  # fmt: skip
    role = roles.get(job.stage, job.stage)
    labels = json.dumps(record.get("labels", {}), sort_keys=True)
    return factors | record | {"experiment": experiment, "role": role, "labels": labels}
