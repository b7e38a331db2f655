import json
import runpy
from pathlib import Path

import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "loading.py"))


@pytest.fixture
def small(monkeypatch):
    values = BENCHMARK["main"].__globals__
    monkeypatch.setitem(values, "IMAGES", 60)
    monkeypatch.setitem(values, "TEXT_BYTES", 1_000_000)
    models = {"language": "decoder_tiny", "images": "vit_tiny"}
    monkeypatch.setitem(values, "MODELS", {"cpu": models})


def test_it_reports_the_ratio_of_reading_to_training_for_text_and_images(small, tmp_path, capsys):
    output = tmp_path / "loading.json"
    BENCHMARK["main"](["--output", str(output), "--rounds", "1"])
    report = json.loads(output.read_text())
    assert set(report["tasks"]) == {"language", "images"}
    for entry in report["tasks"].values():
        rates = entry["examples_per_second"]
        # One round: the ratio of medians is the median of ratios.
        assert entry["ratio"] == pytest.approx(rates["reading"] / rates["training"])
        # A step reads its batch too.
        assert entry["ratio"] > 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["images"] == {"ratio": report["tasks"]["images"]["ratio"]}


def test_bad_options_are_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        BENCHMARK["main"](["--output", str(tmp_path / "x.json"), "--rounds", "0"])
    assert "--rounds: found 0, expected at least 1" in capsys.readouterr().err
