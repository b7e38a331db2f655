import json
import runpy
from pathlib import Path

import pyarrow.parquet
import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "tokenizing.py"))


def test_it_reports_the_ratio_of_preparing_to_tokenizers_alone(tmp_path, capsys):
    output = tmp_path / "tokenizing.json"
    sizes = ["--megabytes", "0.2", "--vocab-size", "300", "--rounds", "1"]
    BENCHMARK["main"](["--output", str(output), *sizes])
    report = json.loads(output.read_text())
    rates = report["bytes_per_second"]
    for kind in ("parquet", "jsonl"):
        # One round: the ratio of medians is the median of ratios.
        assert report["ratios"][kind] == pytest.approx(rates[kind] / rates["tokenizers"])
    assert report["documents"] == 40
    assert report["bytes"] >= 200_000
    assert json.loads(capsys.readouterr().out) == {"ratios": report["ratios"]}


def test_all_take_the_same_texts(tmp_path):
    texts = BENCHMARK["corpus"](0.1)
    assert sum(map(len, texts)) == 100_000
    folders = BENCHMARK["write_tables"](texts, tmp_path)
    table = pyarrow.parquet.read_table(folders["parquet"])
    assert table.column("text").to_pylist() == texts
    lines = (folders["jsonl"] / "texts.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == texts


def test_bad_options_are_refused_in_one_line(tmp_path, capsys):
    for option, value in (("--rounds", "0"), ("--megabytes", "0.0"), ("--megabytes", "nan"),
                          ("--megabytes", "inf")):  # fmt: skip
        with pytest.raises(SystemExit):
            BENCHMARK["main"](["--output", str(tmp_path / "x.json"), option, value])
        assert f"{option}: found {value}, expected at least" in capsys.readouterr().err
