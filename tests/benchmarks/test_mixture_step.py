import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "mixture_step.py"))
SMALL = replace(BENCHMARK["SIZES"]["cpu"], hidden_size=32, width=16, positions=8)


def test_it_reports_the_ratio_of_a_mixture_to_its_dense_peer(tmp_path, capsys, monkeypatch):
    output = tmp_path / "mixture.json"
    monkeypatch.setitem(BENCHMARK["SIZES"], "cpu", SMALL)
    BENCHMARK["main"](["--output", str(output), "--rounds", "1"])
    report = json.loads(output.read_text())
    times = report["median_seconds"]
    # One round: the ratio of medians is the median of ratios.
    assert report["ratio"] == pytest.approx(times["mixture"] / times["dense"])
    assert json.loads(capsys.readouterr().out) == {"ratio": report["ratio"],
                                                   "grouped_products": False}  # fmt: skip
    assert report["size"]["dense_width"] == 5 * 16
    rate = report["operations_per_second"]["dense"]
    assert rate * times["dense"] == pytest.approx(SMALL.operations)
    assert report["load"]["max_violation"] > 0


def counted(layer) -> int:
    step = BENCHMARK["prepare_step"](layer, SMALL, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def test_the_dense_layer_has_the_work_of_the_active_experts():
    # Six operations per weight of the router and token.
    router = 6 * 32 * SMALL.experts * SMALL.sequences * SMALL.positions
    assert counted(SMALL.dense()) == SMALL.operations
    assert counted(SMALL.mixture()) == SMALL.operations + router


def test_bad_options_are_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        BENCHMARK["main"](["--output", str(tmp_path / "mixture.json"), "--rounds", "0"])
    assert "--rounds: found 0, expected at least 1" in capsys.readouterr().err
