import re

import pandas as pd
import pytest

from harness.errors import UserError
from harness.records.statistics import Estimate
from harness.reporting.claims import write_claims
from harness.reporting.figures import read_index, write_figures
from harness.reporting.recommendations import write_recommendations
from harness.reporting.report import write_report
from harness.reporting.results import Results
from harness.reporting.tables import evidence, write_tables
from tests.reporting.test_claims import LEDGER
from tests.reporting.test_recommendations import RECOMMENDATIONS


def test_the_best_learning_rate_is_the_lowest_completed_one(results_folder):
    [sweep] = Results(results_folder).sweeps()
    tuning = sweep.tuning("adamw")
    assert tuning.best == 0.003
    assert not tuning.on_edge
    assert tuning.losses[0.01] == float("inf")


def test_tables_hold_every_optimizer_and_count_what_did_not_complete(results_folder, tmp_path):
    written = write_tables(results_folder, tmp_path)
    names = {path.stem for path in written}
    assert names == {"sweep.language_optimizers.decoder_tiny.text", "step_time.decoder_small",
                     "tasks.language_optimizers.decoder_tiny.text", "calibration"}  # fmt: skip
    table = pd.read_csv(tmp_path / "sweep.language_optimizers.decoder_tiny.text.csv")
    table = table.set_index("optimizer")
    assert list(table.index) == ["adamw", "muon", "root"]
    assert table["not_completed"].to_dict() == {"adamw": 1, "muon": 0, "root": 0}
    assert table["difference"]["muon"] == pytest.approx(-0.5)
    assert table["difference_high"]["muon"] < 0
    ratios = pd.read_csv(tmp_path / "step_time.decoder_small.csv").set_index("optimizer")["ratio"]
    assert ratios.to_dict() == pytest.approx({"adamw": 1, "muon": 2, "root": 3})
    assert "\\begin{tabular}" in (tmp_path / "calibration.tex").read_text()


@pytest.mark.parametrize(
    ("mean", "half", "metric", "mark"),
    [
        (-1, 0.5, "test/loss", "better"),
        (1, 0.5, "test/loss", "worse"),
        (1, 0.5, "test/accuracy", "better"),
        (1, 2, "test/loss", "unresolved"),
    ],
)
def test_evidence_marks(mean, half, metric, mark):
    assert evidence(Estimate(mean, mean - half, mean + half, 3), metric) == mark


def test_figures_are_drawn_from_records_alone_and_are_the_same_each_time(results_folder, tmp_path):
    first, second = (write_figures(results_folder, tmp_path / name) for name in "ab")
    assert {path.stem.split(".")[0] for path in first} >= {
        "loss_curves", "learning_rate_sensitivity", "final_scores", "downstream_tasks",
        "optimizer_step_time", "calibration_error",
    }  # fmt: skip
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.with_suffix(".svg").read_bytes() == other.with_suffix(".svg").read_bytes()
        assert one.with_suffix(".pdf").stat().st_size > 1000
    assert {entry["name"] for entry in read_index(tmp_path / "a")} == {p.stem for p in first}


def test_the_report_is_one_file_with_everything_in_it(results_folder, tmp_path):
    figures = tmp_path / "figures"
    drawn = write_figures(results_folder, figures)
    write_claims(results_folder, LEDGER, tmp_path / "claims.csv")
    html, markdown = tmp_path / "report.html", tmp_path / "report.md"
    write_recommendations(results_folder, RECOMMENDATIONS, tmp_path / "recommendations.csv")
    write_report(results_folder, figures, tmp_path / "claims.csv",
                 tmp_path / "recommendations.csv", html, markdown)  # fmt: skip
    page = html.read_text()
    assert page.count("data:image/png;base64,") == len(drawn)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "loss inf at step 10" in page
    assert page.count("network cards on the I/O die") == 1  # however much bears on it
    for link in re.findall(r"!\[.*?\]\((.*?)\)", markdown.read_text()):
        assert (tmp_path / link).is_file()


def test_missing_records_are_named(tmp_path):
    with pytest.raises(UserError, match=r"records\.parquet: no such file"):
        Results(tmp_path)
