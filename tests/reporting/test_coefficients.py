"""Tables and figures of coefficients and of what was recorded, on made-up records."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.stats import norm

from harness.records.snapshots import EDGES, PROBABILITIES
from harness.records.store import RECORD_COLUMNS, load_records, write_table
from harness.reporting.recorded import LAYERS
from harness.reporting.results import Results
from harness.reporting.tables import make_tables, write_tables
from paper_figures import (
    calibration_by_shape,
    calibration_error,
    gradient_distribution,
    momentum_precision,
)

ERRORS = {"cubic": 0.75, "muon": 0.2, "root": 0.1}
SHAPE_ERRORS = {"muon": 0.2, "published": 0.15, "fitted_gram": 0.05, "unconstrained_gram": math.inf}


def recorded_rows(optimizer: str, seed: int):
    run = {"experiment": "language_optimizers", "run_id": f"{optimizer}.reporting.0.003.{seed}",
           "role": "reporting", "model": "decoder_tiny", "dataset": "text", "seed": seed,
           "optimizer": optimizer, "learning_rate": 0.003, "unit": "1"}  # fmt: skip
    for name, error in ERRORS.items():
        for layer in LAYERS:
            labels = json.dumps({"layer": layer, "coefficients": name})
            for step in (1, 50, 100):
                yield run | {"metric": "orthogonalization/error", "labels": labels, "step": step,
                             "value": error * (1 + 0.1 * seed)}  # fmt: skip
            yield run | {"metric": "orthogonalization/steady_error", "labels": labels,
                         "value": error * (1 + 0.1 * seed)}  # fmt: skip
    for probability in PROBABILITIES:
        yield run | {"metric": "gradient/quantile", "step": 50, "value": norm.ppf(probability) * 2,
                     "labels": json.dumps({"probability": probability})}  # fmt: skip
    for lower in EDGES[60:100]:
        yield run | {"metric": "gradient/histogram", "step": 50, "value": 1000 * norm.pdf(lower),
                     "labels": json.dumps({"lower": lower})}  # fmt: skip


def shape_rows():
    common = {"experiment": "by_shape", "role": "compute", "run_id": "s", "unit": "1"}
    for rows, columns in ((64, 64), (64, 128)):
        for name, error in SHAPE_ERRORS.items():
            labels = json.dumps({"rows": rows, "columns": columns, "coefficients": name})
            row = common | {"labels": labels}
            for seed in (1, 2):
                yield row | {"metric": "orthogonalization/error", "value": error, "seed": seed}
            stable = 0.0 if name == "unconstrained_gram" else 1.2
            values = {"a": 3.0, "b": -4.0, "c": 2.0, "stable_up_to": stable}
            if name != "muon":
                for key, value in values.items():
                    yield row | {"metric": f"orthogonalization/{key}", "value": value}


def calibration_rows():
    common = {"experiment": "calibration", "role": "compute", "run_id": "c", "unit": "1",
              "model": "decoder_tiny"}  # fmt: skip
    entries = {"root": ("gaussian", 0.1), "root_adanewton_only": ("gaussian", 0.1),
               "root_recorded": ("recorded", math.inf)}  # fmt: skip
    for name, (data, error) in entries.items():
        values = {"a": 3.4, "b": -4.7, "c": 2.0, "error": error, "error_muon": 0.2,
                  "stable_up_to": 1.3}  # fmt: skip
        if data == "recorded":
            values |= {"error_recorded": 0.3, "error_recorded_muon": 0.4}
        labels = {"rows": 64, "columns": 64, "source": "calibrated", "data": data,
                  "objective": "mean_square"}  # fmt: skip
        for metric, value in values.items():
            yield common | {"optimizer": name, "metric": f"calibration/{metric}", "value": value,
                            "labels": json.dumps(labels)}  # fmt: skip


@pytest.fixture
def folder(results_folder) -> Path:
    """The folder of the other tests with recorded runs and more coefficients."""
    rows = [row for name in ("muon", "root") for seed in range(3)
            for row in recorded_rows(name, seed)]  # fmt: skip
    rows += [*shape_rows(), *calibration_rows()]
    before = load_records(results_folder)
    before = before[before["experiment"] != "calibration"]
    frame = pd.concat([before, pd.DataFrame(rows)])
    write_table(frame, RECORD_COLUMNS, results_folder / "records.parquet")
    path = results_folder / "plan.json"
    plan = json.loads(path.read_text())
    plan["experiments"]["by_shape"] = {"kind": "compute", "title": "Shapes", "question": "?"}
    path.write_text(json.dumps(plan))
    return results_folder


@pytest.fixture
def results(folder) -> Results:
    return Results(folder)


def curves(figure: Figure, panel: int) -> dict[str, np.ndarray]:
    lines = figure.axes[panel].get_lines()
    return {line.get_label(): np.column_stack(line.get_data()) for line in lines}


def test_infinite_numbers_stay_in_the_records(results):
    values = results.of("by_shape")["value"].astype(float)
    assert np.isinf(values).sum() == 4


def test_the_table_of_steady_errors(results):
    [table] = [one for one in make_tables(results) if one.name.startswith("precision.")]
    assert list(table.numbers["trained with"]) == ["muon"] * 3 + ["root"] * 3
    numbers = table.numbers.set_index(["trained with", "coefficients"])
    assert numbers.loc[("muon", "root"), "mlp_up"] == pytest.approx(0.11)
    assert list(table.text.columns[2:]) == list(LAYERS.values())
    assert table.text.iloc[0, 2] == "0.8250 ± 0.1863"


def test_the_tables_of_shapes_say_what_overflows(results, folder, tmp_path):
    tables = {one.name: one for one in make_tables(results)}
    table = tables["by_shape.64x128"]
    rows = table.text.set_index("coefficients")
    assert list(rows.index) == list(SHAPE_ERRORS)
    assert rows["error"]["unconstrained_gram"] == "infinite"
    assert rows["stable up to"]["unconstrained_gram"] == "0.00"
    assert rows["a, b, c"]["published"] == "3.0000, -4.0000, 2.0000"
    assert rows["stable up to"]["muon"] == "-"
    assert "mean over 2 draws" in table.caption
    write_tables(folder, tmp_path)
    assert np.isinf(pd.read_csv(tmp_path / "by_shape.64x64.csv")["error"].iloc[-1])


def test_the_table_of_calibrations_has_each_once_with_its_users(results):
    [table] = [one for one in make_tables(results) if one.name == "calibration"]
    assert list(table.text["optimizer"]) == ["root, root_adanewton_only", "root_recorded"]
    assert list(table.text["coefficients"]) == ["gaussian, mean_square", "recorded, mean_square"]
    assert list(table.text["error, recorded"]) == ["-", "0.3000"]
    assert list(table.text["error"]) == ["0.1000", "infinite"]


def test_precision_is_drawn_over_the_share_of_training_before_the_published_points(results):
    [(name, (experiment, figure))] = momentum_precision.draw(results).items()
    assert (name, experiment) == (
        "momentum_precision.language_optimizers.decoder_tiny.text", "language_optimizers"
    )  # fmt: skip
    assert [ax.get_title() for ax in figure.axes] == list(LAYERS.values())
    for panel in range(4):
        found = curves(figure, panel)
        np.testing.assert_allclose(found["ROOT"], [[0.01, 0.11], [0.5, 0.11], [1, 0.11]])
        assert {"classic Newton-Schulz", "Muon"} <= set(found)
    # Published steady errors of the MLP's down projection, from steps 1,200 to 10,000.
    pale = [line for line in figure.axes[1].get_lines() if line.get_alpha() is not None]
    means = [np.mean([y for x, y in zip(*line.get_data(), strict=True) if x >= 0.12])
             for line in pale]  # fmt: skip
    assert means == pytest.approx([0.757, 0.213, 0.152], abs=0.002)


def test_without_runs_of_muon_the_first_recorded_optimizer_is_drawn(folder):
    records = load_records(folder)
    write_table(records[records["optimizer"] != "muon"], RECORD_COLUMNS, folder / "records.parquet")
    plan = json.loads((folder / "plan.json").read_text())
    for entry in plan["experiments"].values():
        entry["optimizers"] = ["adamw", "root"]
    (folder / "plan.json").write_text(json.dumps(plan))
    [(_, figure)] = momentum_precision.draw(Results(folder)).values()
    assert "trained with root" in figure.get_suptitle()
    assert {"classic Newton-Schulz", "Muon", "ROOT"} <= set(curves(figure, 0))


def test_what_an_earlier_sweep_showed_is_not_drawn_again(folder):
    records = load_records(folder)
    runs = pd.read_parquet(folder / "runs.parquet")
    again = {"experiment": "root_parts"}
    more = records[records["role"] == "reporting"].assign(**again)
    write_table(pd.concat([records, more]), RECORD_COLUMNS, folder / "records.parquet")
    pd.concat([runs, runs.assign(**again)]).to_parquet(folder / "runs.parquet")
    plan = json.loads((folder / "plan.json").read_text())
    plan["experiments"]["root_parts"] = plan["experiments"]["language_optimizers"]
    (folder / "plan.json").write_text(json.dumps(plan))
    results = Results(folder)
    assert len(list(results.sweeps())) == 2
    assert len(momentum_precision.draw(results)) == len(gradient_distribution.draw(results)) == 1


def test_gradients_are_drawn_beside_the_normal_distribution(results):
    [(_, (_, figure))] = gradient_distribution.draw(results).items()
    density, quantiles = figure.axes
    heights = [bar.get_height() for bar in density.patches]
    assert sum(heights) * 0.25 == pytest.approx(1)
    assert len(heights) == 40
    points = quantiles.get_lines()[1].get_ydata()
    np.testing.assert_allclose(points, 2 * norm.ppf(PROBABILITIES))
    assert "trained with muon, step 50" in figure.get_suptitle()


def test_shapes_are_drawn_without_what_overflows_and_with_what_is_unstable(folder):
    records = load_records(folder)
    labels = records["labels"].fillna("").str.contains("fitted_gram")
    unstable = labels & (records["metric"] == "orthogonalization/stable_up_to")
    records.loc[unstable, "value"] = 0.0
    write_table(records, RECORD_COLUMNS, folder / "records.parquet")
    [(name, (experiment, figure))] = calibration_by_shape.draw(Results(folder)).items()
    assert name == experiment == "by_shape"
    assert [ax.get_title() for ax in figure.axes] == ["64 x 64", "64 x 128"]
    for ax in figure.axes:
        points = [(line.get_marker(), *line.get_xdata()) for line in ax.get_lines()]
        assert ("x", 0.05) in points
        assert len(points) == 3 + 1


def test_equal_calibrations_are_drawn_once(results):
    [(_, (_, figure))] = calibration_error.draw(results).items()
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert labels == ["muon", "root", "root_recorded"]
