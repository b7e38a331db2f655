"""What a run records, against its own replay in plain NumPy."""

import time

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from harness.errors import Interrupted, UserError
from harness.optimizers import CompositeOptimizer, OrthogonalizedMomentum, build_optimizer
from harness.records.run_folder import RunFolder
from harness.records.snapshots import EDGES, PROBABILITIES, read_snapshots
from harness.training import recorder
from harness.training.recorder import gradient_distribution, singular_values
from harness.training.schedules import learning_rate_factor
from harness.training.tasks import LanguageTask
from tests.training.test_loop import run, specification

MATRICES = {
    f"blocks.0.{name}.weight"
    for name in (
        *(f"attention.{part}" for part in ("query", "key", "value", "output")),
        *(f"feed_forward.{part}" for part in ("gate", "up", "down")),
    )
}


def recording(**training) -> dict:
    return specification(steps=12, **{"recording_interval": 5, **training})


def files(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder.path / "snapshots").iterdir()}


def replay(spec: dict, data) -> dict[int, tuple[dict, dict]]:
    """Return gradients before clipping and momentum with Nesterov mix, by step and parameter."""
    task = LanguageTask(spec, data, torch.device("cpu"))
    torch.manual_seed(spec["seed"])
    model = task.build()
    optimizer = build_optimizer(spec["optimizer"], model, spec["learning_rate"])
    momentum = {name: np.zeros(p.shape) for name, p in model.named_parameters()}
    seen = {}
    for step in range(spec["training"]["steps"]):
        factor = learning_rate_factor(spec["training"]["schedule"], step, spec["training"]["steps"])
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        task.objective(model, *task.batch(step), 0.0)[0].backward()
        raw = {name: p.grad.double().numpy().copy() for name, p in model.named_parameters()}
        nn.utils.clip_grad_norm_(model.parameters(), spec["training"]["gradient_clip"])
        mixed = {}
        for name, parameter in model.named_parameters():
            gradient = parameter.grad.double().numpy()
            momentum[name] = 0.95 * momentum[name] + gradient
            mixed[name] = gradient + 0.95 * momentum[name]
        optimizer.step()
        optimizer.zero_grad()
        seen[step + 1] = (raw, mixed)
    return seen


def test_snapshots_hold_the_singular_values_of_what_was_orthogonalised(tmp_path, data):
    # A threshold far below all entries: what is recorded is the matrix before the filter.
    spec = recording()
    spec["optimizer"] = spec["optimizer"] | {"arguments": {"outlier_threshold": 1e-4}}
    folder = RunFolder(tmp_path, "run")
    run(spec, folder, data)
    seen = replay(spec, data)
    snapshots = list(read_snapshots(folder))
    assert [snapshot.step for snapshot in snapshots] == [1, 5, 10]
    for snapshot in snapshots:
        assert set(snapshot.spectra) == MATRICES
        for name, values in snapshot.spectra.items():
            expected = np.linalg.svd(seen[snapshot.step][1][name], compute_uv=False)[::-1]
            expected /= np.linalg.norm(expected)
            assert values.dtype == np.float64
            np.testing.assert_allclose(values, expected, atol=2e-6)


def test_snapshots_hold_the_distribution_of_gradients_before_clipping(tmp_path, data):
    spec = recording(gradient_clip=0.1)
    folder = RunFolder(tmp_path, "run")
    run(spec, folder, data)
    seen = replay(spec, data)
    for snapshot in read_snapshots(folder):
        gradients = [seen[snapshot.step][0][name] for name in sorted(MATRICES)]
        pooled = np.concatenate([((g - g.mean()) / g.std()).ravel() for g in gradients])
        expected = np.quantile(pooled, PROBABILITIES)
        np.testing.assert_allclose(snapshot.quantiles, expected, rtol=1e-3, atol=1e-4)
        assert snapshot.histogram.sum() == pooled.size
        inner = np.histogram(pooled, EDGES)[0]
        assert np.abs(snapshot.histogram - inner).sum() < 0.002 * pooled.size


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("form", ["sum", "average"])
def test_an_optimizer_says_what_its_last_step_orthogonalised(form, nesterov):
    generator = np.random.default_rng(0)
    seen = {(4, 6): (4, 6), (3, 4, 6): (3, 4, 6), (6, 2, 3, 2): (6, 12)}
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in seen]
    optimizer = OrthogonalizedMomentum(
        parameters, momentum=0.9, momentum_form=form, nesterov=nesterov
    )
    buffers = [np.zeros(p.shape) for p in parameters]
    for _ in range(3):
        gradients = [generator.standard_normal(p.shape) for p in parameters]
        weight = 0.1 if form == "average" else 1.0
        buffers = [0.9 * b + weight * g for b, g in zip(buffers, gradients, strict=True)]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        for parameter, buffer, gradient in zip(parameters, buffers, gradients, strict=True):
            expected = 0.9 * buffer + weight * gradient if nesterov else buffer
            found = optimizer.direction(parameter)
            assert found.shape == seen[tuple(parameter.shape)]
            np.testing.assert_allclose(found.numpy().ravel(), expected.ravel(), atol=1e-5)


def test_each_expert_is_recorded_under_a_name_of_its_own(monkeypatch):
    model = nn.Module()
    model.experts = nn.Parameter(torch.zeros(3, 5, 4))
    model.dense = nn.Parameter(torch.zeros(4, 4))
    optimizer = CompositeOptimizer(
        {"matrices": OrthogonalizedMomentum(model.parameters(), momentum=0.9)}
    )
    found = []
    monkeypatch.setattr(recorder, "write_snapshot", lambda _, snapshot: found.append(snapshot))
    watch = recorder.Recorder(None, model, optimizer, {"recording_interval": 2, "steps": 2})
    generator = np.random.default_rng(0)
    drawn = {name: generator.standard_normal((2, *p.shape)) for name, p in model.named_parameters()}
    # No token reaches the second expert before the second step, and none the third at that step.
    drawn["experts"] *= np.array([1, 50, 0.1])[:, None, None]
    drawn["experts"][0, 1] = drawn["experts"][1, 2] = 0
    for step in range(2):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.tensor(drawn[name][step], dtype=torch.float32)
        optimizer.step()
        watch.after_step(step + 1)
    first, second = (snapshot.spectra for snapshot in found)
    assert set(first) == {"dense", "experts[0]", "experts[2]"}
    assert set(second) == {"dense", "experts[0]", "experts[1]", "experts[2]"}
    # buf = 0.9 g1 + g2, and the step orthogonalises g2 + 0.9 buf.
    mixed = 0.81 * drawn["experts"][0] + 1.9 * drawn["experts"][1]
    for place in range(3):
        expected = np.linalg.svd(mixed[place], compute_uv=False)[::-1]
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(second[f"experts[{place}]"], expected, atol=1e-6)
    # Each with its own mean and deviation taken out.
    ours = [drawn["dense"][1], *drawn["experts"][1, :2]]
    pooled = np.concatenate([*(((g - g.mean()) / g.std()).ravel() for g in ours), np.zeros(20)])
    np.testing.assert_allclose(found[1].quantiles, np.quantile(pooled, PROBABILITIES), atol=1e-5)


def test_recording_does_not_change_training(tmp_path, data):
    plain = run(recording(recording_interval=None), RunFolder(tmp_path, "plain"), data)
    recorded = run(recording(recording_interval=1), RunFolder(tmp_path, "recorded"), data)
    assert recorded["weights_sha256"] == plain["weights_sha256"]
    assert recorded["snapshots"] == list(range(1, 13))
    assert plain["snapshots"] == []
    assert list(read_snapshots(RunFolder(tmp_path, "plain"))) == []


def test_recording_does_not_count_as_training_time(tmp_path, data, monkeypatch):
    write = recorder.write_snapshot

    def slow(*arguments) -> None:
        time.sleep(0.3)
        write(*arguments)

    monkeypatch.setattr(recorder, "write_snapshot", slow)
    summary = run(recording(recording_interval=1), RunFolder(tmp_path, "slow"), data)
    assert summary["seconds"] < 0.3 * 12
    assert summary["seconds_per_step"] < 0.3


def test_a_resumed_run_records_the_same_bytes(tmp_path, data):
    whole, stopped = RunFolder(tmp_path, "whole"), RunFolder(tmp_path, "stopped")
    run(recording(), whole, data)
    for stop_after in (2, 6):
        with pytest.raises(Interrupted):
            run(recording(), stopped, data, stop_after=stop_after)
    # As if it had been killed after recording, before the next checkpoint.
    (stopped.path / "snapshots" / "step-10.safetensors").write_bytes(b"cut short")
    run(recording(), stopped, data)
    assert files(stopped) == files(whole)
    assert len(files(whole)) == 3


def test_only_what_is_orthogonalised_is_recorded(tmp_path, data):
    folder = RunFolder(tmp_path, "sgd")
    spec = specification("sgd", steps=4, recording_interval=1)
    assert run(spec, folder, data)["snapshots"] == []
    assert not (folder.path / "snapshots").exists()


def test_a_run_that_diverges_while_recording_is_no_crash(tmp_path, data):
    spec = recording(recording_interval=1) | {"learning_rate": 1e30}
    folder = RunFolder(tmp_path, "diverged")
    assert run(spec, folder, data)["status"] == "diverged"
    assert list(read_snapshots(folder)) == []


def test_a_missing_snapshot_is_named(tmp_path, data):
    folder = RunFolder(tmp_path, "run")
    run(recording(), folder, data)
    (folder.path / "snapshots" / "step-5.safetensors").unlink()
    with pytest.raises(UserError, match=r"step-5\.safetensors: no such file, .* delete"):
        list(read_snapshots(folder))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7), (1, 4)])
def test_singular_values_in_any_shape(shape):
    matrix = 1e-3 * np.random.default_rng(1).standard_normal(shape)
    expected = np.linalg.svd(matrix, compute_uv=False)[::-1] / np.linalg.norm(matrix)
    np.testing.assert_allclose(singular_values(torch.tensor(matrix)), expected, atol=1e-12)


def test_matrices_of_low_rank():
    assert np.all(singular_values(torch.zeros(3, 5)) == 0)
    found = singular_values(torch.ones(3, 5))
    np.testing.assert_allclose(found, [0, 0, 1], atol=1e-8)


def test_large_gradients_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(recorder, "SAMPLED", 40_000)
    generator = torch.Generator().manual_seed(0)
    # Large matrices often have rows and columns of their own scale.
    rows, columns = (torch.rand(count, generator=generator) ** 3 for count in (512, 1024))
    gradient = torch.randn(512, 1024, generator=generator) * rows[:, None] * columns
    sampled, _ = gradient_distribution([gradient])
    monkeypatch.setattr(recorder, "SAMPLED", gradient.numel())
    whole, _ = gradient_distribution([gradient])
    inner = slice(6, -6)
    np.testing.assert_allclose(sampled[inner], whole[inner], rtol=0.06, atol=0.005)


def test_normal_gradients_have_normal_quantiles_and_outliers_stay_in_the_outermost_bin():
    generator = torch.Generator().manual_seed(0)
    quantiles, counts = gradient_distribution(
        [3 + 5 * torch.randn(400, 500, generator=generator), torch.zeros(2, 2)]
    )
    expected = stats.norm.ppf(PROBABILITIES)
    np.testing.assert_allclose(quantiles[5:-5], expected[5:-5], atol=0.03)
    assert counts.sum() == 400 * 500 + 4
    hit = torch.randn(100, 100, generator=generator)
    hit[0, 0] = 1e6
    assert gradient_distribution([hit])[1][-1] == 1
