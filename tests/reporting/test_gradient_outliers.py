"""Figures about gradient outliers, on records whose losses are known by construction."""

import json
from pathlib import Path

import pandas as pd
import pytest

from harness.records.store import RECORD_COLUMNS, RUN_COLUMNS, write_table
from harness.reporting.conditions import gradient_outliers, specification, without_outliers
from harness.reporting.figures import read_index, write_figures
from harness.reporting.results import Results
from paper_figures import gradient_outliers as cost_figure
from paper_figures import outlier_percentile as percentile_figure

OUTLIERS = {"fraction": 0.001, "scale": 10.0, "distribution": "cauchy"}
PERCENTILES = {"root_p80": 0.8, "root": 0.9, "root_p99": 0.99}
# Final loss of seed 0 by experiment and optimizer; seed 1 is 0.02 above, seed 2 0.01 below.
CLEAN = {"adamw": 5.0, "muon": 4.0, "root": 4.1}
LOSSES = {
    "language_optimizers": CLEAN,
    "gradient_outliers": {"adamw": 5.1, "muon": 4.4, "root": 4.2, "soap": 6.0},
    "root_percentiles": {"root_p80": 4.3, "root": 4.1, "root_p99": 4.2},
    "root_percentiles_outliers": {"root_p80": 4.5, "root": 4.2, "root_p99": 4.6, "muon": 4.4},
}
BASELINES = {"language_optimizers": "adamw", "gradient_outliers": "muon"}


def made_up_runs(experiment: str, optimizer: str, loss: float):
    outliers = OUTLIERS if experiment.endswith("outliers") else None
    recording = 10 if experiment == "language_optimizers" else None
    arguments = {"outlier_percentile": PERCENTILES.get(optimizer)}
    for seed, shift in enumerate((0.0, 0.02, -0.01)):
        spec = {
            "optimizer": {"class": optimizer.split("_")[0], "arguments": arguments},
            "training": {"gradient_outliers": outliers, "recording_interval": recording},
            "learning_rate": 0.01,
            "seed": seed,
        }
        common = {"experiment": experiment, "run_id": f"{experiment}.{optimizer}.{seed}",
                  "role": "reporting", "model": "decoder_tiny", "dataset": "text",
                  "optimizer": optimizer, "learning_rate": 0.01, "seed": seed}  # fmt: skip
        run = {"status": "completed", "spec": json.dumps(spec), "environment": "{}"}
        record = {"labels": "{}", "metric": "test/loss", "step": 60, "value": loss + shift,
                  "unit": "nats"}  # fmt: skip
        yield common | run, common | record


@pytest.fixture
def noisy_folder(tmp_path) -> Path:
    pairs = [
        pair
        for experiment, losses in LOSSES.items()
        for optimizer, loss in losses.items()
        for pair in made_up_runs(experiment, optimizer, loss)
    ]
    plan = {
        "scale": "smoke",
        "experiments": {
            name: {"title": name, "kind": "train", "baseline": BASELINES.get(name, "root"),
                   "optimizers": list(losses)}
            for name, losses in LOSSES.items()
        },
    }  # fmt: skip
    folder = tmp_path / "records"
    write_table(pd.DataFrame([run for run, _ in pairs]), RUN_COLUMNS, folder / "runs.parquet")
    write_table(
        pd.DataFrame([record for _, record in pairs]), RECORD_COLUMNS, folder / "records.parquet"
    )
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


@pytest.fixture
def results(noisy_folder) -> Results:
    return Results(noisy_folder)


def test_runs_without_outliers_are_found_by_specification(results):
    sweeps = {sweep.experiment: sweep for sweep in results.sweeps()}
    noisy = sweeps["gradient_outliers"]
    assert gradient_outliers(noisy) == OUTLIERS
    assert gradient_outliers(sweeps["root_percentiles"]) is None
    assert not {"seed", "learning_rate"} & set(specification(noisy, "muon"))
    assert without_outliers(results, noisy, "muon").experiment == "language_optimizers"
    assert without_outliers(results, noisy, "soap") is None


def test_the_cost_of_outliers_is_drawn_for_every_optimizer(results):
    experiment, figure = cost_figure.draw(results)["gradient_outliers.gradient_outliers."
                                                   "decoder_tiny.text"]  # fmt: skip
    assert experiment == "gradient_outliers"
    losses, costs = figure.axes
    assert [label.get_text() for label in losses.get_yticklabels()] == [
        "soap", "adamw", "muon", "root"
    ]  # fmt: skip
    means = [container.lines[0].get_xdata()[0] for container in costs.containers]
    assert means == pytest.approx([0.1, 0.4, 0.1])
    assert len(losses.containers) == 4 + 3


def test_the_caption_says_what_the_runs_were_given(results):
    for module in (cost_figure, percentile_figure):
        assert "0.1 % of the entries" in module.caption(results)
        assert "Cauchy distribution whose scale is 10 times" in module.caption(results)


def test_percentiles_are_read_from_the_runs(results):
    [(name, (experiment, figure))] = percentile_figure.draw(results).items()
    assert name == "outlier_percentile.decoder_tiny.text"
    assert experiment == "root_percentiles_outliers"
    [ax] = figure.axes
    lines = {c.get_label(): c.lines[0] for c in ax.containers}
    assert set(lines) == {"root, without outliers", "root, with outliers"}
    noisy = lines["root, with outliers"]
    assert list(noisy.get_xdata()) == pytest.approx([80.12, 90.12, 99.12])
    assert list(noisy.get_ydata()) == pytest.approx([x + 0.01 / 3 for x in (4.5, 4.2, 4.6)])
    references = [line for line in ax.lines if str(line.get_label()).startswith("muon")]
    assert {line.get_label(): line.get_ydata()[0] for line in references} == pytest.approx(
        {"muon, without outliers": 4.0 + 0.01 / 3, "muon, with outliers": 4.4 + 0.01 / 3}
    )


def test_captions_reach_the_index(noisy_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.reporting.figures.modules", lambda: [cost_figure])
    write_figures(noisy_folder, tmp_path / "figures")
    captions = [entry["caption"] for entry in read_index(tmp_path / "figures")]
    assert captions
    assert all("Cauchy" in caption for caption in captions)


def test_other_records_have_no_such_figures(results_folder):
    for module in (cost_figure, percentile_figure):
        assert module.draw(Results(results_folder)) == {}
