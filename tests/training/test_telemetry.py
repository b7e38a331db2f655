"""What a run reports of its speed: phases, utilization, energy and traces."""

import json
import time
from pathlib import Path

import pytest
import torch

from harness.config.base import validate
from harness.config.catalog import load_models
from harness.config.model_schema import ModelSpec
from harness.errors import Interrupted, UserError
from harness.models.flops import training_flops_per_example
from harness.records.run_folder import RunFolder
from harness.training import phases, utilization
from harness.training import run as run_module
from harness.training.phases import DEVICE_PHASES, HOST_PHASES, PhaseClock
from harness.training.tasks import LanguageTask
from harness.training.trace import trace_steps
from harness.training.utilization import BFLOAT16_PEAK, bfloat16_peak, flops_per_example
from tests.training.test_loop import run, specification

MODELS = Path(__file__).parents[2] / "config" / "models.yaml"
CUDA = torch.device("cuda")
PAUSE, LONG = 0.1, 0.3


def slow(monkeypatch, owner, name: str, seconds: float = PAUSE) -> None:
    """Let every call of a method take longer."""
    method = getattr(owner, name)

    def slower(*arguments):
        time.sleep(seconds)
        return method(*arguments)

    monkeypatch.setattr(owner, name, slower)


@pytest.mark.parametrize(
    ("name", "phase", "calls"),
    [("batch", "data", 4), ("objective", "forward_backward", 4), ("after_step", "optimizer", 4),
     ("evaluate", "evaluation", 3)],
)  # fmt: skip
def test_time_goes_to_the_phase_that_takes_it(tmp_path, data, monkeypatch, name, phase, calls):
    slow(monkeypatch, LanguageTask, name)
    spec = specification(steps=4, evaluation_interval=2)
    summary = run(spec, RunFolder(tmp_path, "slow"), data)
    seconds = summary["phase_seconds"]
    assert set(seconds) == {*HOST_PHASES, *DEVICE_PHASES}
    assert seconds[phase] >= calls * PAUSE
    others = sum(value for other, value in seconds.items() if other != phase)
    assert others < seconds[phase]


def test_evaluation_and_checkpoints_are_not_the_time_of_a_step(tmp_path, data, monkeypatch):
    """A timer that runs during evaluation, or one that leaves steps out, would fail here."""
    slow(monkeypatch, LanguageTask, "evaluate", LONG)
    slow(monkeypatch, run_module.Run, "_state", LONG)
    slow(monkeypatch, LanguageTask, "objective")
    spec = specification(steps=4, evaluation_interval=2)
    summary = run(spec, RunFolder(tmp_path, "timed"), data, checkpoint_seconds=0)
    seconds = summary["phase_seconds"]
    assert seconds["evaluation"] >= 3 * LONG
    assert seconds["checkpoint"] >= LONG
    of_steps = sum(seconds[phase] for phase in ("data", *DEVICE_PHASES))
    assert 4 * PAUSE <= of_steps <= summary["seconds"] < of_steps + LONG
    assert PAUSE <= summary["seconds_per_step"] < PAUSE + LONG


def test_times_of_a_resumed_run_add_up(tmp_path, data, monkeypatch):
    slow(monkeypatch, LanguageTask, "objective")
    folder = RunFolder(tmp_path, "stopped")
    with pytest.raises(Interrupted):
        run(specification(steps=6), folder, data, stop_after=2)
    summary = run(specification(steps=6), folder, data)
    assert summary["phase_seconds"]["forward_backward"] >= 6 * PAUSE


class FakeEvent:
    """An event of a device whose every piece of work takes 250 ms."""

    synchronized = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    def synchronize(self):
        FakeEvent.synchronized += 1

    def elapsed_time(self, end):
        return 250.0


def test_on_cuda_events_tell_the_time_and_nobody_waits_within_a_step(monkeypatch):
    monkeypatch.setattr(phases.torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "synchronized", 0)
    clock = PhaseClock(CUDA)
    for _ in range(3):
        with clock.phase("data"):
            pass
        with clock.phase("optimizer"):
            pass
    assert FakeEvent.synchronized == 0
    seconds = clock.seconds()
    assert seconds["optimizer"] == 0.75
    assert seconds["data"] < 0.1
    assert clock.seconds() == seconds


@pytest.mark.parametrize("name", ["decoder_124m", "decoder_1b_mha"])
def test_operations_per_token_are_those_of_palm_with_causal_attention(name):
    """Chowdhery et al. (appendix B): 6 N + 12 L H Q T, of which causal attention needs half.

    N counts the matrices of a Llama (its table of sizes), without the embedding.
    """
    models, vocabulary, length = load_models(MODELS), 50304, 1024
    spec = models[name].model_dump()
    width, layers = spec["hidden_size"], spec["num_hidden_layers"]
    hidden = layers * (4 * width**2 + 3 * width * spec["feed_forward"]["intermediate_size"])
    expected = 6 * (hidden + width * vocabulary) + 12 * layers * width * length / 2
    task = {"task": "language", "model": spec, "training": {"sequence_length": length}}
    found = flops_per_example(task, {"vocab_size": vocabulary})
    assert found == pytest.approx(expected, rel=1e-12)


def test_operations_of_images_are_known_for_one_size():
    model = {"family": "vit", "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
    spec = {"task": "images", "model": model, "training": {"sequence_length": None}}
    expected = training_flops_per_example(validate(ModelSpec, model, "model"), None)
    assert flops_per_example(spec, {"size": 32}) == expected
    assert flops_per_example(spec, {"size": 8}) is None


def test_utilization_of_table_4_follows_from_its_rate():
    """DeepSeek-V3 (arXiv 2505.09343, table 4): 385 TFLOP/s are 38.94 % of the bfloat16 peak."""
    spec = specification(precision="bfloat16")
    found = utilization.utilization(spec, 385e12, BFLOAT16_PEAK["NVIDIA H800"])
    assert found == pytest.approx(0.3894, abs=5e-4)


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100", "RTX"])
def test_an_unknown_gpu_has_no_peak(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert bfloat16_peak(CUDA) is None
    assert utilization.utilization(specification(precision="bfloat16"), 1e12, None) is None


def test_a_known_gpu_has_the_peak_of_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert bfloat16_peak(CUDA) == 756.5e12


def test_cpus_and_float32_have_no_utilization(tmp_path, data):
    assert bfloat16_peak(torch.device("cpu")) is None
    assert utilization.utilization(specification(), 1e12, 2e12) is None
    summary = run(specification(), RunFolder(tmp_path, "cpu"), data)
    assert summary["utilization"] is None
    flops = flops_per_example(specification(), {"vocab_size": 257})
    rate = summary["model_flops_per_second"] / summary["examples_per_second"]
    assert rate == pytest.approx(flops)


class FakeMeter:
    """One joule per reading, or nothing where there is no counter."""

    supported = True

    def __init__(self, device):
        self.source = "nvml" if self.supported else None
        self.read = 0

    def joules(self):
        self.read += 1
        return float(self.read) if self.supported else None


def test_energy_of_a_resumed_run_adds_up(tmp_path, data, monkeypatch):
    monkeypatch.setattr(run_module, "EnergyMeter", FakeMeter)
    whole = run(specification(steps=8), RunFolder(tmp_path, "whole"), data)
    # Once at each of four records and once at the end.
    assert (whole["joules"], whole["energy_source"]) == (5.0, "nvml")
    folder = RunFolder(tmp_path, "stopped")
    with pytest.raises(Interrupted):
        run(specification(steps=8), folder, data, stop_after=4)
    # Three readings until the checkpoint is written, then two records and the end.
    assert run(specification(steps=8), folder, data)["joules"] == 6.0


def test_without_a_counter_energy_is_absent_and_not_zero(tmp_path, data, monkeypatch):
    monkeypatch.setattr(run_module, "EnergyMeter", FakeMeter)
    monkeypatch.setattr(FakeMeter, "supported", False)
    summary = run(specification(), RunFolder(tmp_path, "none"), data)
    assert (summary["joules"], summary["energy_source"]) == (None, None)


def test_energy_of_a_shared_device_is_nobodys(data, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "EnergyMeter", FakeMeter)
    summary = run(specification(), RunFolder(tmp_path, "shared"), data, shared_device=True)
    assert (summary["joules"], summary["energy_source"]) == (None, None)


def test_a_trace_holds_its_steps_and_touches_no_run(tmp_path, data):
    output = tmp_path / "traces" / "trace.json"
    trace_steps(specification(), data, "cpu", None, output)
    names = {event.get("name") for event in json.loads(output.read_text())["traceEvents"]}
    assert {"step 3", "step 4", "step 5"} <= names
    assert "step 2" not in names
    assert [path.name for path in tmp_path.iterdir()] == ["traces"]
    with pytest.raises(UserError, match=r"training\.steps: found 5, expected at least 6"):
        trace_steps(specification(steps=5), data, "cpu", None, output)
