import json
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.numerics import mixed_precision
from harness.numerics.orthogonalization import schedule
from harness.optimizers import OrthogonalizedMomentum

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


def test_a_step_on_a_cpu_needs_less_memory_than_all_matrices_of_a_shape():
    matrices = nn.ParameterList([torch.zeros(384, 1024) for _ in range(12)])
    for index, parameter in enumerate(matrices):
        generator = torch.Generator().manual_seed(index)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    step = OrthogonalizedMomentum(matrices, dtype="bfloat16").step
    peak = BENCHMARK["peak_step_memory"](step, torch.device("cpu"))
    assert peak < sum(parameter.nbytes for parameter in matrices)


def test_an_iteration_on_a_gpu_needs_a_few_times_its_matrices(monkeypatch):
    """So that a quarter of the matrices at a time needs less than all of them."""
    monkeypatch.setattr(mixed_precision, "_product", what_a_gpu_allocates)
    batch = torch.randn(8, 128, 341, generator=torch.Generator().manual_seed(0))
    triples = schedule("muon", 5)

    def step():
        mixed_precision.iterate_batch(batch, triples)

    peak = BENCHMARK["peak_step_memory"](step, torch.device("cpu"))
    assert batch.nbytes + peak < 4 * batch.nbytes


def what_a_gpu_allocates(left, right):
    return torch.zeros(len(left), left.shape[1], right.shape[2])
