"""From recorded matrices to fitted coefficients, to runs that use them and errors of both."""

import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from harness.config.catalog import load_catalog
from harness.config.yaml_file import merge, read_yaml
from harness.errors import UserError
from harness.files import write_json
from harness.jobs import matrices as matrices_module
from harness.jobs import run_job
from harness.jobs.collect import collect
from harness.jobs.context import Context
from harness.jobs.matrices import Matrix, hidden_matrices, recorded_spectra
from harness.jobs.precision import layer_errors
from harness.numerics.orthogonalization import MUON, relative_error
from harness.optimizers import CompositeOptimizer, OrthogonalizedMomentum
from harness.optimizers.calibration import Calibration, calibrate
from harness.records.snapshots import Snapshot, read_snapshots
from harness.records.store import load_records
from harness.reporting.results import label
from harness.training import recorder
from harness.training.recorder import singular_values

CONFIG = Path(__file__).parents[2] / "config"
TRAINING = {"steps": 12, "batch_size": 2, "sequence_length": 32, "recording_interval": 3,
            "log_interval": 4, "evaluation_interval": 12, "evaluation_batches": 1}  # fmt: skip
COMMON = {"datasets": ["standard_library_bytes"], "training": TRAINING,
          "seeds": {"tuning": [9], "reporting": [0, 1]}}  # fmt: skip
SCALE = {
    "description": "recording in a test",
    "device": "cpu",
    "runs_per_job": 8,
    "experiments": {
        "language_optimizers": COMMON | {"optimizers": ["muon", "torch_muon"], "baseline": "muon",
                                         "evaluation": None},
        "root_calibration": COMMON | {"optimizers": ["root", "root_recorded"]},
    },
}  # fmt: skip
STEPS = [1, 3, 6, 9, 12]


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    """A folder in which all jobs have run in this process."""
    folder = tmp_path_factory.mktemp("recording")
    config = Path(shutil.copytree(CONFIG, folder / "config"))
    (config / "scales" / "micro.yaml").write_text(yaml.safe_dump(SCALE))
    grid = {name: {"tune": {"lr": [0.003, 0.01]}} for name in ("muon", "torch_muon", "root")}
    optimizers = config / "optimizers.yaml"
    optimizers.write_text(yaml.safe_dump(merge(read_yaml(optimizers), grid)))
    context = Context(load_catalog(config, "micro"), folder / "results")
    for job in context.jobs.values():
        write_json(context.output(job), run_job(job, context))
    collect(context)
    return context


@pytest.fixture(scope="module")
def records(context) -> pd.DataFrame:
    frame = load_records(context.scale_folder)
    return frame.assign(**{name: label(frame, name) for name in ("layer", "coefficients")})


def snapshots(context: Context, run_id: str) -> dict[int, Snapshot]:
    return {one.step: one for one in read_snapshots(context.run_folder(run_id))}


def test_errors_are_those_of_the_recorded_matrices(context, records):
    rows = records[(records["metric"] == "orthogonalization/error")
                   & (records["experiment"] == "language_optimizers")]  # fmt: skip
    assert set(rows["optimizer"]) == {"muon"}
    assert set(rows["seed"]) == {0, 1}
    assert set(rows["role"]) == {"reporting"}
    assert set(rows["coefficients"]) == {"cubic", "muon"}
    layers = {"mlp_up": "up", "mlp_down": "down", "attention_out": "output"}
    muon = rows[rows["coefficients"] == "muon"]
    for (run_id, layer), curve in muon.groupby(["run_id", "layer"]):
        assert list(curve["step"]) == STEPS
        parts = [layers[layer]] if layer in layers else ["query", "key", "value"]
        spectra = snapshots(context, run_id)[6].spectra
        expected = np.mean([
            relative_error(values, [MUON] * 5)
            for name, values in spectra.items() if name.split(".")[-2] in parts
        ])  # fmt: skip
        assert curve.set_index("step")["value"][6] == pytest.approx(expected)


def test_the_steady_error_is_the_mean_after_the_start(records):
    keys = ["run_id", "experiment", "layer", "coefficients"]
    steady = records[records["metric"] == "orthogonalization/steady_error"].set_index(keys)["value"]
    rows = records[records["metric"] == "orthogonalization/error"]
    # 12 % of 12 steps: all but the first.
    expected = rows[rows["step"] > 1].groupby(keys)["value"].mean()
    assert len(steady) == len(expected)
    for key, value in steady.items():
        assert value == pytest.approx(expected[key])


def test_coefficients_are_fitted_to_what_was_recorded(context, records):
    recording = context.catalog.optimizers["root_recorded"].recording
    spectra = recorded_spectra("decoder_tiny", recording, context)
    # Two seeds, five steps, and in two layers gate, up and down.
    assert {shape: len(found) for shape, found in spectra.items()} == {
        (64, 64): 40, (32, 64): 40, (64, 192): 60
    }  # fmt: skip
    runs = [run for job in context.jobs.values()
            if (job.stage, job.experiment) == ("train", "language_optimizers")
            and job.work[0].factors.optimizer == "muon"
            for run in context.reported_runs(job.name)]  # fmt: skip
    first = snapshots(context, runs[0]["run_id"])
    name = "blocks.0.attention.query.weight"
    for found, step in zip(spectra[64, 64][:5], STEPS, strict=True):
        np.testing.assert_array_equal(found, first[step].spectra[name])
    options = context.catalog.optimizers["root_recorded"].calibration.model_dump()
    expected = calibrate((64, 64), Calibration(**options), spectra[64, 64])
    rows = records[records["optimizer"] == "root_recorded"]
    rows = rows.assign(rows=label(rows, "rows"), columns=label(rows, "columns"))
    rows = rows[(rows["rows"] == 64) & (rows["columns"] == 64)]
    found = rows.set_index("metric")["value"]
    assert [found[f"calibration/{key}"] for key in "abc"] == pytest.approx(list(expected.triple))
    assert found["calibration/error_recorded"] == pytest.approx(expected.error_recorded)
    assert found["calibration/error_recorded_muon"] == pytest.approx(expected.error_recorded_muon)
    assert found["calibration/stable_up_to"] == pytest.approx(expected.stable_up_to)
    sources = label(rows, "source"), label(rows, "data"), label(rows, "objective")
    assert [set(one) for one in sources] == [{"calibrated"}, {"recorded"}, {"mean_square"}]


def test_fitted_coefficients_are_the_better_ones_where_they_were_fitted(records):
    rows = records[(records["metric"] == "orthogonalization/steady_error")
                   & (records["experiment"] == "root_calibration")]  # fmt: skip
    assert set(rows["optimizer"]) == {"root", "root_recorded"}
    means = rows.groupby(["coefficients", "layer"])["value"].mean().unstack()
    assert set(means.index) == {"cubic", "muon", "root", "root_recorded"}
    assert (means.loc["root_recorded"] < means.loc["root"]).all()


def test_gradients_are_described_at_a_middle_step(records):
    counts = records[records["metric"] == "gradient/histogram"]
    assert set(counts["step"]) == {6}
    first = counts[(counts["seed"] == 0) & (counts["optimizer"] == "muon")]
    assert first["value"].sum() == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 192)
    quantiles = records[records["metric"] == "gradient/quantile"]
    quantiles = quantiles[quantiles["run_id"] == first["run_id"].iloc[0]]
    values = quantiles.assign(p=label(quantiles, "probability")).sort_values("p")["value"]
    assert len(values) == 27
    assert (values.diff().dropna() > 0).all()


def test_the_error_of_a_layer_is_that_of_its_matrices():
    generator = np.random.default_rng(0)
    matrices = {"a": Matrix((6, 9), "up"), "b": Matrix((6, 9), "up"), "c": Matrix((6, 6), None)}
    raw = {"a": generator.standard_normal((6, 9)), "b": generator.standard_normal((9, 6)),
           "c": generator.standard_normal((6, 6))}  # fmt: skip
    spectra = {name: singular_values(torch.tensor(values)) for name, values in raw.items()}
    snapshot = Snapshot(1, spectra, np.empty(0), np.empty(0))
    triple = (3.0, -4.0, 1.9)
    expected = []
    for name in ("a", "b"):
        x = raw[name] / np.linalg.norm(raw[name])
        left, _, right = np.linalg.svd(x, full_matrices=False)
        for _ in range(5):
            a, b, c = triple
            x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
        polar = left @ right
        expected.append(np.linalg.norm(x - polar) / np.linalg.norm(polar))
    found = layer_errors(snapshot, matrices, {(6, 9): [triple] * 5})
    assert found == {"up": pytest.approx(np.mean(expected), rel=1e-9)}


class Experts(nn.Module):
    """Three experts and a shared one, and a convolution."""

    companion_parameters = ()
    layer_kinds: ClassVar = {"mlp_up": r"^up$|^shared\."}

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 9, 6))
        self.shared = nn.Linear(6, 9, bias=False)
        self.kernel = nn.Parameter(torch.randn(8, 2, 3, 3))


def test_experts_count_as_matrices_of_their_own(context, monkeypatch):
    monkeypatch.setattr(matrices_module, "build_model", lambda *_, **__: Experts())
    matrices = hidden_matrices("decoder_tiny", context)
    assert matrices == {
        "up[0]": Matrix((6, 9), "mlp_up"),
        "up[1]": Matrix((6, 9), "mlp_up"),
        "up[2]": Matrix((6, 9), "mlp_up"),
        "shared.weight": Matrix((6, 9), "mlp_up"),
        "kernel": Matrix((8, 18), None),
    }
    # The names are those of the snapshots.
    model = Experts()
    optimizer = OrthogonalizedMomentum(model.parameters())
    model.up.grad, model.kernel.grad = torch.randn(3, 9, 6), torch.randn(8, 2, 3, 3)
    model.shared.weight.grad = torch.randn(9, 6)
    found = []
    monkeypatch.setattr(recorder, "write_snapshot", lambda _, snapshot: found.append(snapshot))
    watch = recorder.Recorder(None, model, CompositeOptimizer({"matrices": optimizer}),
                              {"recording_interval": 1, "steps": 1})  # fmt: skip
    optimizer.step()
    watch.after_step(1)
    [snapshot] = found
    assert set(snapshot.spectra) == set(matrices)
    errors = [relative_error(snapshot.spectra[name], [MUON] * 5)
              for name, matrix in matrices.items() if matrix.layer]  # fmt: skip
    triples = {(6, 9): [MUON] * 5, (8, 18): [MUON] * 5}
    assert layer_errors(snapshot, matrices, triples) == {"mlp_up": pytest.approx(np.mean(errors))}


def test_kinds_of_layers_are_those_of_the_model(context):
    layers = {name: one.layer for name, one in hidden_matrices("decoder_tiny", context).items()}
    assert layers["blocks.1.attention.key.weight"] == "attention_qkv"
    assert layers["blocks.0.feed_forward.gate.weight"] is None
    kinds = [one for one in layers.values() if one is not None]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "mlp_up": 2, "mlp_down": 2, "attention_qkv": 6, "attention_out": 2
    }  # fmt: skip


def test_without_completed_recordings_there_is_one_clear_line(context, tmp_path):
    empty = Context(context.catalog, tmp_path)
    for job in empty.jobs.values():
        if job.stage == "train":
            write_json(empty.output(job), {"runs": [], "reason": "every rate diverged"})
    job = empty.job("calibrate.decoder_tiny.root_recorded")
    with pytest.raises(UserError, match=r"no completed run of 'muon' .* \(recorded: nothing\)"):
        run_job(job, empty)
