"""What a paper asks hardware for, each beside the numbers from records that bear on it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.recommendations_schema import (
    Recommendation,
    RecordedEvidence,
    load_recommendations,
)
from harness.errors import UserError, closest
from harness.files import write_atomically
from harness.records.statistics import Estimate, mean_over_seeds
from harness.reporting.results import Results, label

COLUMNS = ("number", "recommendation", "sections", "says", "value", "low", "high", "unit",
           "experiment", "metric", "scale", "note")  # fmt: skip
FACTORS = ("model", "dataset", "optimizer")
# Tells repetitions of a measurement apart, of which the median counts.
REPETITION = "round"


def write_recommendations(records: Path, recommendations: Path, output: Path) -> None:
    """Write every recommendation of a file, with what bears on it, as CSV.

    Raises:
        UserError: If the file or the records are not what they should be, or several numbers fit
            what should be one.
    """
    results = Results(records)
    rows = [
        row
        for number, entry in load_recommendations(recommendations).items()
        for row in evidence_rows(number, entry, results, str(recommendations))
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    write_atomically(output, frame.to_csv(index=False).encode())


def evidence_rows(
    number: int, entry: Recommendation, results: Results, path: str
) -> Iterator[dict[str, Any]]:
    """Yield a row for each piece of evidence, or one that says why there is none.

    Args:
        number: Of the recommendation.
        entry: The recommendation.
        results: The records.
        path: Of the file, for errors.

    Raises:
        UserError: If several numbers fit what should be one.
    """
    common = {"number": number, "recommendation": entry.recommendation,
              "sections": ", ".join(entry.sections), "scale": results.scale}  # fmt: skip
    if entry.nothing:
        yield common | {"note": entry.nothing}
    for place, evidence in enumerate(entry.evidence):
        row = common | {"says": evidence.says, "experiment": evidence.experiment,
                        "metric": evidence.metric}  # fmt: skip
        if evidence.experiment not in results.plan["experiments"]:
            yield row | {"note": _elsewhere(evidence.experiment, results)}
            continue
        found = _found(evidence, results, f"{path}: {number}.evidence.{place}")
        if isinstance(found, str):
            yield row | {"note": found}
            continue
        estimate, unit = found
        yield row | {"value": estimate.mean, "low": estimate.low, "high": estimate.high,
                     "unit": unit}  # fmt: skip


def _elsewhere(experiment: str, results: Results) -> str:
    """Return that the experiment is not part of this scale, and what would run it."""
    entry = results.plan["elsewhere"].get(experiment)
    command = f": {entry['command']} ({entry['cost']})" if entry else ""
    return f"not run at scale {results.scale}{command}"


def _found(evidence: RecordedEvidence, results: Results, where: str) -> tuple[Estimate, str] | str:
    """Return a number and its unit, or in words why there is none."""
    if evidence.compare:
        return _ratio(evidence, results, where)
    rows = results.of(evidence.experiment)
    rows = rows[(rows["metric"] == evidence.metric) & (rows["role"] != "tuning")]
    if rows.empty:
        return f"no record of {evidence.metric}"
    for key, wanted in evidence.where.items():
        values = rows[key] if key in FACTORS else label(rows, key)
        if not (values == wanted).any():
            present = ", ".join(sorted({str(value) for value in values.dropna()}))
            return f"no record with {key} {wanted} at this scale, only {present or 'without'}"
        rows = rows[values == wanted]
    _refuse_several(rows, where)
    return mean_over_seeds(_by_seed(rows)), rows["unit"].iloc[0]


def _ratio(evidence: RecordedEvidence, results: Results, where: str) -> tuple[Estimate, str] | str:
    """Return the relative difference of two members of a sweep."""
    assert evidence.compare
    sweeps = [sweep for sweep in results.sweeps() if sweep.experiment == evidence.experiment]
    if len(sweeps) > 1:
        places = ", ".join(sweep.place for sweep in sweeps)
        raise UserError(f"{where}: {len(sweeps)} sweeps fit: {places}, expected one")
    for sweep in sweeps:
        for member in evidence.compare:
            if member not in sweep.palette:
                found = f"found '{member}'{closest(member, sweep.palette)}"
                raise UserError(f"{where}.compare: {found}")
            if member not in sweep.members:
                return f"no runs of {member}"
        difference = sweep.relative_difference(evidence.metric, *evidence.compare)
        if difference is not None:
            return difference, "1"
    return f"no completed runs with {evidence.metric}"


def _refuse_several(rows: pd.DataFrame, where: str) -> None:
    """Refuse numbers that differ in more than seed and repetition: their mean would mean little."""
    described = [
        {name: row[name] for name in FACTORS if isinstance(row[name], str)}
        | {k: v for k, v in json.loads(row["labels"]).items() if k != REPETITION}
        for row in rows[[*FACTORS, "labels"]].to_dict("records")
    ]
    for key in sorted({key for labels in described for key in labels}):
        values = sorted({str(labels.get(key)) for labels in described})
        if len(values) > 1:
            raise UserError(f"{where}.where: several numbers fit, {key} is {' and '.join(values)}; "
                            "expected one")  # fmt: skip


def _by_seed(rows: pd.DataFrame) -> list[float]:
    """Return the last number of every run and seed, of repetitions the median."""
    ordered = rows.assign(step=rows["step"].fillna(0))
    groups = ordered.groupby(["run_id", "seed"], dropna=False)
    last = (group[group["step"] == group["step"].max()] for _, group in groups)
    return [float(group["value"].median()) for group in last]
