"""A run that is stopped anywhere ends where an uninterrupted one does, bit for bit."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from harness.data.images import prepare_images
from harness.data.text import TokenStream
from harness.errors import Interrupted, UserError
from harness.records.run_folder import RunFolder
from harness.training.loop import run_training
from harness.training.tasks import LanguageTask

OPTIMIZERS = {
    "sgd": {"class": "torch.optim.SGD", "arguments": {"momentum": 0.9}},
    "muon": {
        "class": "harness.optimizers.OrthogonalizedMomentum",
        "parameters": "matrices",
        "companion": {"class": "torch.optim.AdamW", "arguments": {}, "lr": None},
    },
}
MODEL = {
    "family": "decoder",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "attention": {"kind": "gqa", "num_attention_heads": 2, "num_key_value_heads": 1},
    "feed_forward": {"kind": "swiglu", "intermediate_size": 32},
}
EVERY_PART = MODEL | {
    "num_hidden_layers": 2,
    "attention": {"kind": "mla", "num_attention_heads": 2, "kv_lora_rank": 16,
                  "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
    "feed_forward": {"kind": "moe", "n_routed_experts": 4, "num_experts_per_tok": 2,
                     "n_shared_experts": 1, "moe_intermediate_size": 16,
                     "balance": {"bias_update_rate": 0.01, "sequence_loss": 0.01}},
    "prediction": {"depth": 2, "late_loss_weight": 0.1, "late_from": 0.5},
    "linear": {"scaling": "block", "block_size": 16},
    "combine": {"format": "logfmt8", "tile": 16},
}  # fmt: skip
TRAINING = {
    "steps": 30,
    "batch_size": 4,
    "sequence_length": 16,
    "accumulation": 1,
    "attend_across_documents": True,
    "schedule": {"kind": "warmup_cosine", "warmup": 0.1, "final": 0.1},
    "gradient_clip": 1.0,
    "gradient_outliers": None,
    "recording_interval": None,
    "precision": "float32",
    "log_interval": 2,
    "evaluation_interval": 10,
    "evaluation_batches": 2,
    "augmentation": None,
    "label_smoothing": 0.0,
    "evaluation_views": "image",
}


def specification(optimizer: str = "muon", lr: float = 0.01, **training) -> dict:
    entry = {"parameters": "all", "companion": None, "calibration": None, "arguments": {}}
    return {
        "task": "language",
        "compile": False,
        "model": MODEL,
        "optimizer": entry | OPTIMIZERS[optimizer],
        "training": TRAINING | training,
        "learning_rate": lr,
        "seed": 3,
    }


def run(
    spec,
    folder,
    data,
    *,
    stop_after=None,
    checkpoint_seconds=1e9,
    keep_weights=False,
    shared_device=False,
):
    steps = []
    return run_training(
        spec,
        folder,
        data,
        "cpu",
        None,
        checkpoint_seconds=checkpoint_seconds,
        keep_weights=keep_weights,
        progress=lambda step, *_: steps.append(step),
        stop=lambda: stop_after is not None and steps != [] and steps[-1] >= stop_after,
        shared_device=shared_device,
    )


OUTLIERS = {"fraction": 0.05, "scale": 10.0, "distribution": "cauchy"}


@pytest.mark.parametrize(
    ("model", "outliers"),
    [(MODEL, None), (MODEL, OUTLIERS), (EVERY_PART, None)],
    ids=["plain", "gradient_outliers", "every_part"],
)
def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(tmp_path, data, model, outliers):
    spec = specification(gradient_outliers=outliers) | {"model": model}
    whole = run(spec, RunFolder(tmp_path, "whole"), data)
    folder = RunFolder(tmp_path, "stopped")
    for stop_after in (4, 16):
        with pytest.raises(Interrupted):
            run(spec, folder, data, stop_after=stop_after)
    resumed = run(spec, folder, data)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert folder.metrics() == RunFolder(tmp_path, "whole").metrics()


def test_experts_report_their_load_and_products_their_backend(tmp_path, data):
    folder = RunFolder(tmp_path, "parts")
    summary = run(specification(accumulation=2) | {"model": EVERY_PART}, folder, data)
    rows = {row["metric"]: row["value"] for row in folder.metrics()}
    layers = [rows[f"train/moe/layer_{layer}/max_violation"] for layer in range(4)]
    assert rows["train/moe/max_violation"] == pytest.approx(np.mean(layers))
    # Two of four experts: the fullest has at least its even share and at most every token.
    assert all(0 <= layer <= 1 for layer in layers)
    assert 0 < rows["train/moe/load_entropy"] <= 1
    assert summary["environment"]["fp8_backend"] == "emulated"


def test_a_completed_run_is_not_computed_again(tmp_path, data):
    folder = RunFolder(tmp_path, "once")
    first = run(specification(), folder, data)
    before = (folder.path / "summary.json").stat().st_mtime_ns
    assert run(specification(), folder, data) == first
    assert (folder.path / "summary.json").stat().st_mtime_ns == before


def test_outliers_change_training(tmp_path, data):
    plain = run(specification(), RunFolder(tmp_path, "plain"), data)
    hit = run(specification(gradient_outliers=OUTLIERS), RunFolder(tmp_path, "hit"), data)
    assert hit["status"] == "completed"
    assert hit["weights_sha256"] != plain["weights_sha256"]


def test_validation_does_not_change_training(tmp_path, data):
    often = run(specification(evaluation_interval=2), RunFolder(tmp_path, "often"), data)
    seldom = run(specification(evaluation_interval=30), RunFolder(tmp_path, "seldom"), data)
    assert often["weights_sha256"] == seldom["weights_sha256"]


def test_accumulation_gives_the_same_result_up_to_rounding(tmp_path, data):
    losses = []
    for parts in (1, 4):
        folder = RunFolder(tmp_path, f"parts{parts}")
        run(specification(accumulation=parts), folder, data)
        losses.append([row["value"] for row in folder.metrics() if row["metric"] == "train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_an_infinite_loss_ends_the_run_as_diverged(tmp_path, data):
    spec = specification("sgd", lr=1e30, gradient_clip=None)
    folder = RunFolder(tmp_path, "diverged")
    summary = run(spec, folder, data)
    assert summary["status"] == "diverged"
    assert "at step" in summary["reason"]
    assert all(math.isfinite(row["value"]) for row in folder.metrics())


def test_a_crash_is_a_row_and_not_the_end_of_the_sweep(tmp_path, data):
    spec = specification()
    spec["optimizer"] = spec["optimizer"] | {"arguments": {"steps": 0}}
    summary = run(spec, RunFolder(tmp_path, "failed"), data)
    assert summary["status"] == "failed"
    assert "steps" in summary["reason"]


def test_a_corrupt_checkpoint_is_named(tmp_path, data):
    folder = RunFolder(tmp_path, "corrupt")
    with pytest.raises(Interrupted):
        run(specification(), folder, data, stop_after=4)
    [checkpoint] = folder.checkpoints.glob("step-*.pt")
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(UserError, match=r"step-\d+\.pt: checkpoint differs from its digest"):
        run(specification(), folder, data)


def test_a_corrupt_shard_is_named(tmp_path, data):
    manifest = json.loads((data / "manifest.json").read_text())
    for path in data.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / manifest["splits"]["train"]["shards"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train-00000\.bin: shard differs from its digest"):
        TokenStream(tmp_path, "train")


def test_every_epoch_visits_every_window_once(data):
    task = LanguageTask(specification(), data, torch.device("cpu"))
    windows = (len(task.stream) - 1) // TRAINING["sequence_length"]
    seen = np.concatenate([task._indices(step, windows) for step in range(windows)])
    for epoch in range(4):
        part = seen[epoch * windows : (epoch + 1) * windows]
        assert sorted(part) == list(range(windows))


def test_targets_are_the_next_tokens(data):
    task = LanguageTask(specification(), data, torch.device("cpu"))
    inputs, targets = task.batch(7)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.shape == (4, 16)


def test_images_train_and_are_scored(tmp_path):
    spec = {
        "kind": "images",
        "source": {"type": "sklearn_digits"},
        "validation_fraction": 0.1,
        "test_fraction": 0.2,
    }
    manifest = prepare_images(spec, tmp_path / "digits", "test")
    assert sum(split["images"] for split in manifest["splits"].values()) == 1797
    model = {"family": "vit", "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
    augmentation = {"flip": False, "translate": 1, "cutout": 0}
    training = {"sequence_length": None, "augmentation": augmentation, "batch_size": 32}
    run_spec = specification(**training) | {"task": "images", "model": model}
    folder = RunFolder(tmp_path, "images")
    assert run(run_spec, folder, tmp_path / "digits")["status"] == "completed"
    scores = {row["metric"]: row["value"] for row in folder.metrics()}
    assert 0.2 < scores["test/accuracy"] <= 1


KILLED = """
import sys, json
from pathlib import Path
from harness.records.run_folder import RunFolder
from harness.training.loop import run_training
spec = json.loads(sys.argv[1])
summary = run_training(spec, RunFolder(Path(sys.argv[2]), "killed"), Path(sys.argv[3]), "cpu", None,
                       checkpoint_seconds=0, keep_weights=False, progress=lambda *a: None,
                       stop=lambda: False)
print(summary["weights_sha256"])
"""


def test_kill_minus_nine_loses_nothing(tmp_path, data):
    spec = specification(steps=150)
    whole = run(spec, RunFolder(tmp_path, "whole"), data)
    command = [sys.executable, "-c", KILLED, json.dumps(spec), str(tmp_path), str(data)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment)
    pointer = tmp_path / "killed" / "checkpoint" / "latest.json"
    deadline = time.monotonic() + 60
    while not pointer.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "summary.json").exists()
    step = json.loads(pointer.read_text())["step"]
    assert 0 < step < 150
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout.strip() == whole["weights_sha256"]
