"""Two Parquet tables per scale: ``records`` in long form, and ``runs`` with the provenance.

A record is one number: which experiment and run it belongs to, the factors of that run, the
metric, the step at which it was taken and its unit. Everything shown in a table, a figure or the
claims ledger is computed from these two files and from nothing else.
"""

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa

from harness.errors import UserError, first_line

RECORD_COLUMNS = {
    "experiment": "string",  # name of the file in config/experiments
    "run_id": "string",
    "role": "string",  # tuning | reporting | measure | compute
    "model": "string",  # name in config/models.yaml; <NA> where it does not apply
    "dataset": "string",  # name in config/datasets.yaml; <NA> where it does not apply
    "optimizer": "string",  # name in config/optimizers.yaml; <NA> where it does not apply
    "learning_rate": "Float64",
    "seed": "Int64",
    "labels": "string",  # further factors, a JSON object with sorted keys; "{}" if there are none
    "metric": "string",  # e.g. train/loss, validation/loss, test/accuracy, lm_eval/<task>/<metric>
    "step": "Int64",  # optimizer steps taken; <NA> for a number that belongs to the whole run
    "value": "Float64",
    "unit": "string",
}

RUN_COLUMNS = {
    "experiment": "string",
    "run_id": "string",
    "role": "string",
    "model": "string",
    "dataset": "string",
    "optimizer": "string",
    "learning_rate": "Float64",
    "seed": "Int64",
    "status": "string",  # completed | diverged | out_of_memory | failed
    "reason": "string",  # why it did not complete; <NA> if it did
    "spec": "string",  # the resolved specification, JSON
    "environment": "string",  # commit, packages, hardware, JSON
    "started": "string",  # UTC, ISO 8601
    "seconds": "Float64",  # wall time spent in the run, over all its slices
}


def write_table(frame: pd.DataFrame, columns: dict[str, str], path: Path) -> None:
    """Write ``frame`` with exactly ``columns`` to ``path``; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    frame.reindex(columns=list(columns)).astype(columns).to_parquet(partial, index=False)
    os.replace(partial, path)


def load_records(folder: Path) -> pd.DataFrame:
    """Return the long table of ``folder`` with the columns of ``RECORD_COLUMNS``.

    Raises:
        UserError: If the folder holds no such table, or it is damaged or lacks a column.
    """
    return _load(Path(folder) / "records.parquet", RECORD_COLUMNS)


def load_runs(folder: Path) -> pd.DataFrame:
    """Return one row per run and experiment of ``folder`` with the columns of ``RUN_COLUMNS``.

    Raises:
        UserError: If the folder holds no such table, or it is damaged or lacks a column.
    """
    return _load(Path(folder) / "runs.parquet", RUN_COLUMNS)


def _load(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the records that 'snakemake' collects")
    try:
        frame = pd.read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: found no whole Parquet table ({first_line(error)}), expected the records "
            "that 'snakemake' collects; delete it to have them collected again"
        ) from None
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise UserError(f"{path}: column '{missing[0]}' is missing, found {list(frame.columns)}")
    return frame.astype(columns)
