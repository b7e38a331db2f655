import json
import math
import runpy
from pathlib import Path

import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "evaluation.py"))
STYLES = ["endings", "choices", "yes_or_no", "last_word", "pages", "completions"]


def test_it_reports_the_ratio_to_hflm_for_every_style(tmp_path, capsys):
    output = tmp_path / "evaluation.json"
    BENCHMARK["main"](["--output", str(output), "--small", "--rounds", "1", "--documents", "2"])
    report = json.loads(output.read_text())
    assert [row["style"] for row in report["styles"]] == STYLES
    for row in report["styles"]:
        rates = row["documents_per_second"]
        # One round: the median of ratios is the ratio of medians.
        assert row["ratio"] == pytest.approx(rates["ours"] / rates["hflm"])
        assert row["documents"] == (1 if row["style"] == "pages" else 2)
    assert report["largest_difference"] < 1e-3
    printed = json.loads(capsys.readouterr().out)
    assert printed == {key: report[key] for key in ("ratios", "largest_difference")}


def test_requests_are_those_of_the_style():
    requests = BENCHMARK["make_requests"](["word"] * 500, 3)
    assert list(requests) == STYLES
    answers = {style: sum(request.doc_id is None for request in asked) for style, asked in
               requests.items()}  # fmt: skip
    assert answers == {"endings": 12, "choices": 12, "yes_or_no": 6, "last_word": 3, "pages": 1,
                       "completions": 3}  # fmt: skip
    assert {request.args[1] for request in requests["yes_or_no"]} == {" no", " yes"}
    # The answers to one question follow the same context.
    for style in ("endings", "choices", "yes_or_no"):
        assert {request.idx for request in requests[style]} == set(
            range(BENCHMARK["STYLES"][style][2])
        )


def test_unequal_answers_are_told():
    difference = BENCHMARK["largest_difference"]
    assert difference([(1.0, True), (2.0, False)], [(1.5, True), (2.0, False)]) == 0.5
    assert difference([-3.0], [-1.0]) == 2
    assert difference(["a"], ["a"]) == 0
    assert difference(["a"], ["b"]) == math.inf


@pytest.mark.parametrize("option", ["--rounds", "--documents", "--batch-size"])
def test_bad_options_are_refused_in_one_line(tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        BENCHMARK["main"](["--output", str(tmp_path / "e.json"), option, "0"])
    assert f"argument {option}: invalid positive value: '0'" in capsys.readouterr().err
