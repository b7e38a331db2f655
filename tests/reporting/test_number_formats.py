"""Figures about number formats and accumulation, on records whose values are known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.records.store import RECORD_COLUMNS, RUN_COLUMNS, write_table
from harness.reporting.results import Results
from paper_figures import accumulation_error, number_formats

RATIOS = {
    ("e4m3", "tile"): 32.0,
    ("e4m3", "tensor"): 31.0,
    ("e4m3", "tile_power_of_two"): 30.0,
    ("logfmt8", "tile"): 37.0,
    ("bfloat16", "none"): 56.0,
}
# Largest error at K = 1024 by fraction bits and promotion; it grows with K unless promoted.
ERRORS = {(13, "none"): 1e-2, (13, 128): 1e-3, (40, "none"): 0.0}


def rows():
    for seed in (0, 1, 2):
        for (name, scaling), value in RATIOS.items():
            for shift, distribution in enumerate(("normal", "laplace")):
                labels = {"format": name, "scaling": scaling, "tile": 128,
                          "distribution": distribution}  # fmt: skip
                yield "formats", "format/signal_to_noise", seed, labels, value + shift + 0.1 * seed
        for (bits, promotion), value in ERRORS.items():
            for distribution in ("normal", "uniform"):
                for length in (1024, 4096):
                    labels = {"length": length, "fraction_bits": bits, "promotion": promotion,
                              "align": 32, "distribution": distribution}  # fmt: skip
                    grown = value * (length / 1024 if promotion == "none" else 1)
                    yield "sums", "accumulation/max_error", seed, labels, grown * (1 + 0.1 * seed)


@pytest.fixture
def results(tmp_path) -> Results:
    folder: Path = tmp_path / "records"
    records = [
        {"experiment": experiment, "run_id": experiment, "role": "compute", "metric": metric,
         "unit": "1", "seed": seed, "value": value, "labels": json.dumps(labels)}
        for experiment, metric, seed, labels, value in rows()
    ]  # fmt: skip
    write_table(pd.DataFrame(records), RECORD_COLUMNS, folder / "records.parquet")
    write_table(pd.DataFrame(columns=list(RUN_COLUMNS)), RUN_COLUMNS, folder / "runs.parquet")
    entry = {"kind": "compute", "title": "?", "question": "?"}
    plan = {"scale": "smoke", "experiments": {"formats": entry, "sums": entry}}
    (folder / "plan.json").write_text(json.dumps(plan))
    return Results(folder)


def test_formats_are_sorted_and_each_distribution_has_its_mark(results):
    [(name, (experiment, figure))] = number_formats.draw(results).items()
    assert (name, experiment) == ("number_formats.formats", "formats")
    [ax] = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "e4m3, 1 x 128, power of two", "e4m3, per tensor", "e4m3, 1 x 128", "logfmt8, 1 x 128",
        "bfloat16",
    ]  # fmt: skip
    marks = {c.get_label(): sorted(c.lines[0].get_xdata()) for c in ax.containers}
    assert marks == {
        "normal": pytest.approx([30.1, 31.1, 32.1, 37.1, 56.1]),
        "laplace": pytest.approx([31.1, 32.1, 33.1, 38.1, 57.1]),
    }


def test_errors_are_drawn_against_length_beside_the_published_one(results):
    [(name, (experiment, figure))] = accumulation_error.draw(results).items()
    assert (name, experiment) == ("accumulation_error.sums", "sums")
    assert [ax.get_title() for ax in figure.axes] == ["normal", "uniform"]
    for ax in figure.axes:
        lines = {line.get_label(): np.column_stack(line.get_data()) for line in ax.get_lines()}
        limited = lines["13 fraction bits, limited"]
        np.testing.assert_allclose(limited, [[1024, 1.1e-2], [4096, 4.4e-2]])
        promoted = lines["13 fraction bits, promoted every 128"]
        np.testing.assert_allclose(promoted, [[1024, 1.1e-3], [4096, 1.1e-3]])
        assert lines["published, nearly 2 %"].tolist() == [[4096, 0.02]]
        # Exact sums have no place on a logarithmic axis.
        assert not any(label.startswith("40") for label in lines)
    [legend] = figure.legends
    assert len(legend.get_texts()) == 3


def test_other_records_have_no_such_figures(results_folder):
    for module in (number_formats, accumulation_error):
        assert module.draw(Results(results_folder)) == {}
