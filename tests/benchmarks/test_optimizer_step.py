import json
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "optimizer_step.py"))


def test_it_reports_ratios_of_every_optimizer_and_memory(tmp_path, capsys):
    output = tmp_path / "steps.json"
    BENCHMARK["main"](["--output", str(output), "--models", "decoder_tiny", "--rounds", "1"])
    report = json.loads(output.read_text())
    assert {"muon/torch_muon", "root/muon", "muon/adamw_fused"} <= set(report["ratios"])
    assert "muon/pytorch_optimizer_muon" in report["ratios"]
    assert json.loads(capsys.readouterr().out)["ratios"] == report["ratios"]
    [model] = report["models"].values()
    for kind in ("gaussian", "strong_directions"):
        times = model[kind]["median_seconds"]
        # One round, one model: the ratio of medians is the median of ratios.
        expected = times["root"] / times["muon"]
        assert model[kind]["ratios"]["root/muon"] == pytest.approx(expected)
        assert 0 < model[kind]["fraction_of_measured_peak"]["muon"] < 1


def test_operations_of_the_plain_iteration():
    matrices = nn.Module()
    matrices.matrices = nn.ParameterList([torch.empty(3, 5), torch.empty(4, 4)])
    # Counted by hand: per step 2*9*5 + 2*27 + 2*9*5 and three products of 2*64.
    assert BENCHMARK["polynomial_operations"](matrices) == 5 * (234 + 384)


def test_strong_directions_hold_most_of_a_gradient():
    gradient = BENCHMARK["strong_directions_gradient"](
        torch.empty(200, 300), torch.Generator().manual_seed(0)
    )
    energy = torch.linalg.svdvals(gradient).square()
    # Sixteen directions with unit entries against noise of 0.3: 1 / 1.09 of the energy.
    assert 0.88 < (energy[:16].sum() / energy.sum()).item() < 0.96


def test_peak_memory_counts_what_a_step_allocates():
    def step() -> None:
        first = torch.empty(1000)
        second = torch.empty(500)
        del first, second
        torch.empty(250)

    assert BENCHMARK["peak_step_memory"](step, torch.device("cpu")) == 6000
