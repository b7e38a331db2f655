"""Records of one experiment as tables, figures and the ledger read them."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from harness.records.store import RECORD_COLUMNS, RUN_COLUMNS, write_table
from harness.reporting.results import Results


@pytest.fixture
def results_of(tmp_path) -> Callable[[str, list[dict]], Results]:
    """A function from an experiment and its records to results."""

    def write(experiment: str, records: list[dict]) -> Results:
        folder: Path = tmp_path / experiment
        factors = {"experiment": experiment, "run_id": experiment, "role": "compute"}
        frame = pd.DataFrame([
            record | factors | {"labels": json.dumps(record["labels"], sort_keys=True)}
            for record in records
        ])  # fmt: skip
        write_table(frame, RECORD_COLUMNS, folder / "records.parquet")
        write_table(pd.DataFrame(), RUN_COLUMNS, folder / "runs.parquet")
        plan = {"scale": "smoke", "experiments": {experiment: {"kind": "compute"}}, "elsewhere": {}}
        (folder / "plan.json").write_text(json.dumps(plan))
        return Results(folder)

    return write


@pytest.fixture
def verdicts_of(results_of) -> Callable[[str, list[dict]], dict[str, str]]:
    """A function from an experiment and its records to the verdicts of the ledger."""
    from harness.config.claims_schema import load_claims
    from harness.reporting.claims import judge

    def verdicts(experiment: str, records: list[dict]) -> dict[str, str]:
        results = results_of(experiment, records)
        claims = load_claims(Path(__file__).parents[2] / "config" / "claims.yaml")
        about = {name: c for name, c in claims.items() if experiment in c.experiments}
        rows = [row for name, claim in about.items() for row in judge(name, claim, results)]
        assert len({row["id"] for row in rows}) == len(rows)
        return {row["id"]: row["verdict"] for row in rows}

    return verdicts
