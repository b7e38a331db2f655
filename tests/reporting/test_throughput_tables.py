"""The table of throughput shows what was measured and leaves out what was not."""

import json
from pathlib import Path

import pandas as pd
import pytest

from harness.records.store import RECORD_COLUMNS, RUN_COLUMNS, write_table
from harness.reporting.results import Results
from harness.reporting.tables import make_tables

PHASES = {"data": 1.0, "forward_backward": 6.0, "optimizer": 2.0, "evaluation": 1.0,
          "checkpoint": 0.0}  # fmt: skip
GPU = {
    "utilization/bfloat16_peak": 0.4,
    "memory/peak": 3 * 2**30,
    "energy/nvml": 1234.0,
    "model_flops": 4e14,
}


def results(folder: Path, measured: dict[str, float]) -> Results:
    """Return records of two optimizers, the second half as fast, with two seeds each."""
    runs, records = [], []
    for slower, optimizer in enumerate(("adamw", "muon"), 1):
        for seed, factor in ((0, 0.9), (1, 1.1)):
            run = {"experiment": "sweep", "run_id": f"{optimizer}{seed}", "role": "reporting",
                   "model": "small", "dataset": "text", "optimizer": optimizer,
                   "seed": seed}  # fmt: skip
            runs.append(run | {"status": "completed"})
            values = {"throughput": 1e6 * factor / slower} | measured
            values |= {f"time/{phase}": seconds for phase, seconds in PHASES.items()}
            records += [
                run | {"metric": metric, "value": value, "labels": "{}",
                       "unit": "token/s" if metric == "throughput" else "1"}
                for metric, value in values.items()
            ]  # fmt: skip
    folder.mkdir(exist_ok=True)
    write_table(pd.DataFrame(records), RECORD_COLUMNS, folder / "records.parquet")
    write_table(pd.DataFrame(runs), RUN_COLUMNS, folder / "runs.parquet")
    plan = {"title": "A sweep", "kind": "train", "baseline": "adamw", "optimizers": ["adamw"]}
    content = {"scale": "gpu", "experiments": {"sweep": plan}}
    (folder / "plan.json").write_text(json.dumps(content))
    return Results(folder)


def throughput(found: Results):
    [table] = [table for table in make_tables(found) if table.name.startswith("throughput.")]
    return table


def test_rates_are_means_over_seeds_and_phases_are_shares(tmp_path):
    table = throughput(results(tmp_path, GPU))
    assert table.numbers["throughput"].tolist() == pytest.approx([1e6, 5e5])
    assert table.numbers["seconds_forward_backward"].tolist() == [6, 6]
    row = table.text.iloc[1].to_dict()
    assert row == {
        "optimizer": "muon",
        "token/s": "500,000",
        "TFLOP/s": "400.000",
        "% of the bfloat16 peak": "40.0",
        "peak memory (GiB)": "3.00",
        "energy of the GPU (J)": "1,234",
        "% data": "10.0",
        "% forward + backward": "60.0",
        "% optimizer": "20.0",
        "% evaluation": "10.0",
        "% checkpoint": "0.0",
    }


def test_what_this_machine_cannot_measure_has_no_column(tmp_path):
    table = throughput(results(tmp_path, {}))
    assert not {"% of the bfloat16 peak", "peak memory (GiB)"} & set(table.text)
    assert not [column for column in table.text if column.startswith("energy")]


@pytest.mark.parametrize("retries", [0, 1])
def test_micro_batches_are_mentioned_only_where_they_were_halved(tmp_path, retries):
    table = throughput(results(tmp_path, {"out_of_memory_retries": retries}))
    assert ("halved micro-batches" in table.text) == bool(retries)


def test_records_without_phases_have_no_such_table(tmp_path):
    found = results(tmp_path, {})
    found.records = found.records[~found.records["metric"].str.startswith("time/")]
    assert not [table for table in make_tables(found) if table.name.startswith("throughput.")]
