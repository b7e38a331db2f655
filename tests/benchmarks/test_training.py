import json
import runpy
from pathlib import Path

import pytest
import torch

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "training.py"))
SMALL = {"model": "decoder_tiny", "batch_size": 2, "sequence_length": 16, "vocab_size": 300,
         "accumulation": 2}  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(BENCHMARK["SIZES"], "cpu", [SMALL])
    monkeypatch.setitem(BENCHMARK["main"].__globals__, "STEPS", 1)


@pytest.mark.usefixtures("small")
def test_it_reports_the_ratio_of_the_same_model_in_two_loops(tmp_path, capsys):
    output = tmp_path / "training.json"
    BENCHMARK["main"](["--output", str(output), "--rounds", "1", "--threads", "1"])
    report = json.loads(output.read_text())
    [result] = report["results"]
    rates = result["tokens_per_second"]
    # One round: the ratio of medians is the median of ratios.
    assert result["ratio"] == pytest.approx(rates["harness"] / rates["transformers"])
    # The same weights on the same tokens, in two implementations.
    assert result["loss_difference"] < 1e-5
    # A CPU has no peak, and so no utilization.
    assert result["utilization"] == {"harness": None, "transformers": None}
    [shown] = json.loads(capsys.readouterr().out)
    assert shown["ratio"] == result["ratio"]


def test_both_loops_learn_the_same(tmp_path):
    """Equal weights, batches and learning rates: after some steps the losses are still equal."""
    device = torch.device("cpu")
    spec = BENCHMARK["specification"](SMALL, "cpu")
    # One window per sequence and target: the plain loss leaves out the last position of each.
    ours = BENCHMARK["TrainingStep"](
        spec, BENCHMARK["prepare_data"](tmp_path, 16, SMALL["sequence_length"]), device, None
    )
    theirs = BENCHMARK["plain_model"](spec, ours.model)
    batch = ours.task.batch
    tokens = [torch.cat((x, y[:, -1:]), dim=1) for x, y in map(batch, range(6))]
    step = BENCHMARK["plain_loop"](theirs, spec, tokens, device)
    for index in range(6):
        ours.take(index)
        step()
    assert BENCHMARK["_difference"](ours, theirs) < 1e-4


@pytest.mark.parametrize("option", ["--rounds", "--threads"])
def test_bad_options_are_refused_in_one_line(tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        BENCHMARK["main"](["--output", str(tmp_path / "training.json"), option, "0"])
    assert f"{option}: found 0, expected at least 1" in capsys.readouterr().err
