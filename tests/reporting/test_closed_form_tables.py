"""Tables of closed forms: every cell is one record."""

import json
from pathlib import Path

import pandas as pd
import pytest

from harness.records.store import RECORD_COLUMNS, RUN_COLUMNS, write_table
from harness.reporting.closed_form_tables import LAYOUTS, closed_form_tables
from harness.reporting.results import Results


def results_of(folder: Path, records: list[dict]) -> Results:
    factors = {"experiment": "some", "run_id": "some", "role": "compute", "unit": "1"}
    frame = pd.DataFrame([
        record | factors | {"labels": json.dumps(record["labels"], sort_keys=True)}
        for record in records
    ])  # fmt: skip
    write_table(frame, RECORD_COLUMNS, folder / "records.parquet")
    write_table(pd.DataFrame(), RUN_COLUMNS, folder / "runs.parquet")
    (folder / "plan.json").write_text(json.dumps({"scale": "smoke", "experiments": {"some": {}}}))
    return Results(folder)


def scaling(group: int, value: float) -> dict:
    return {"metric": "scaling/operations", "value": value,
            "labels": {"group": group, "inner": 4096}}  # fmt: skip


def step(method: str, value: float, **labels: str) -> dict:
    return {"metric": "step/tflops_full", "value": value,
            "labels": {"network": "a", "method": method} | labels}  # fmt: skip


def test_columns_keep_the_order_of_the_records(tmp_path):
    records = [scaling(512, 0.5), scaling(32, 0.25), scaling(128, 1 / 3)]
    [table] = closed_form_tables(results_of(tmp_path, records), "some")
    assert list(table.numbers) == ["inner", "512", "32", "128"]
    assert table.numbers.iloc[0].tolist() == [4096, 0.5, 0.25, 1 / 3]
    assert table.text["128"].tolist() == ["0.333"]


def test_only_records_with_the_wanted_labels_are_shown(tmp_path):
    records = [
        step("printed", 432),
        step("closed_form", 433.45, prediction="left out"),
        step("closed_form", 449.9, prediction="counted"),
    ]
    [table] = closed_form_tables(results_of(tmp_path, records), "some")
    assert table.numbers["closed_form"].tolist() == [433.45]
    assert table.numbers["printed"].tolist() == [432]


def test_a_cell_of_two_records_is_a_mistake(tmp_path):
    with pytest.raises(AssertionError, match="a cell of two records"):
        list(closed_form_tables(results_of(tmp_path, [scaling(1, 1), scaling(1, 2)]), "some"))


def test_names_of_layouts_are_distinct():
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
