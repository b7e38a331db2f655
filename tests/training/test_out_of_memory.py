"""A run that does not fit goes on with smaller micro-batches, and says so."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.errors import Interrupted
from harness.models import build_model
from harness.models.decoder import Decoder
from harness.records.run_folder import RunFolder
from harness.training.step import TrainingStep, finer_accumulation, micro_batches_matter
from harness.training.tasks import LanguageTask
from tests.training.test_loop import MODEL, run, specification

MIXTURE = MODEL | {
    "feed_forward": {"kind": "moe", "n_routed_experts": 4, "num_experts_per_tok": 2,
                     "moe_intermediate_size": 16},
}  # fmt: skip


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")


def with_memory_for(
    monkeypatch, sequences: int, *, from_progress: float = 0.0, error: Exception = NO_MEMORY
) -> list[int]:
    """Let larger micro-batches run out of memory, and return the sizes of all that were tried."""
    objective, tried = LanguageTask.objective, []

    def limited(self, model, inputs, targets, progress):
        tried.append(len(inputs))
        if len(inputs) > sequences and progress >= from_progress:
            raise error
        return objective(self, model, inputs, targets, progress)

    monkeypatch.setattr(LanguageTask, "objective", limited)
    return tried


def test_it_halves_micro_batches_until_they_fit(tmp_path, data, monkeypatch):
    expected = run(specification(accumulation=4), RunFolder(tmp_path, "small"), data)
    tried = with_memory_for(monkeypatch, 1)
    summary = run(specification(), RunFolder(tmp_path, "retried"), data)
    assert tried[:3] == [4, 2, 1]
    assert summary["status"] == "completed"
    assert (summary["accumulation"], summary["out_of_memory_retries"]) == (4, 2)
    assert summary["weights_sha256"] == expected["weights_sha256"]


def test_it_gives_up_when_one_example_does_not_fit(tmp_path, data, monkeypatch):
    tried = with_memory_for(monkeypatch, 0)
    summary = run(specification(), RunFolder(tmp_path, "large"), data)
    assert tried == [4, 2, 1]
    assert summary["status"] == "out_of_memory"
    assert summary["reason"] == "CUDA out of memory. Tried to allocate 2.00 GiB."
    assert (summary["accumulation"], summary["out_of_memory_retries"]) == (4, 2)


@pytest.mark.parametrize(
    "message",
    ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
     "CUDA error: out of memory\nCUDA kernel errors might be reported later."],
)  # fmt: skip
def test_libraries_run_out_of_memory_in_words_of_their_own(message, tmp_path, data, monkeypatch):
    tried = with_memory_for(monkeypatch, 2, error=RuntimeError(message))
    summary = run(specification(), RunFolder(tmp_path, "library"), data)
    assert tried[:2] == [4, 2]
    assert (summary["status"], summary["accumulation"]) == ("completed", 2)


def test_a_model_that_does_not_fit_is_not_tried_again(tmp_path, data, monkeypatch):
    built = []

    def build(*_):
        built.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(LanguageTask, "build", build)
    summary = run(specification(), RunFolder(tmp_path, "model"), data)
    assert summary["status"] == "out_of_memory"
    assert built == [1]


def test_late_lack_of_memory_goes_on_from_the_checkpoint(tmp_path, data, monkeypatch):
    run(specification(), RunFolder(tmp_path, "whole"), data)
    tried = with_memory_for(monkeypatch, 2, from_progress=0.5)
    summary = run(specification(), RunFolder(tmp_path, "late"), data, checkpoint_seconds=0)
    assert (summary["accumulation"], summary["out_of_memory_retries"]) == (2, 1)
    # Fifteen whole steps, one that fails, and from the checkpoint at step 14 on halves.
    assert tried == [4] * 16 + [2] * 32
    losses = [
        [row["value"] for row in RunFolder(tmp_path, name).metrics() if row["metric"] == metric]
        for metric in ("train/loss", "test/loss")
        for name in ("whole", "late")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[2] == pytest.approx(losses[3], rel=1e-4)


def test_a_stopped_run_keeps_the_micro_batches_that_fitted(tmp_path, data, monkeypatch):
    with_memory_for(monkeypatch, 2)
    whole = run(specification(), RunFolder(tmp_path, "whole"), data)
    folder = RunFolder(tmp_path, "stopped")
    with pytest.raises(Interrupted):
        run(specification(), folder, data, stop_after=4)
    monkeypatch.undo()
    resumed = run(specification(), folder, data)
    assert resumed["accumulation"] == 2
    assert resumed["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"balance": {"batch_loss": 0.01}}, "balance loss"),
        ({"balance": {"auxiliary_loss": 0.01}}, "balance loss"),
        ({"capacity_factor": 1.0}, "capacity"),
    ],
)
def test_what_computes_across_a_micro_batch_is_not_retried(
    tmp_path, data, monkeypatch, options, part
):
    model = MIXTURE | {"feed_forward": MIXTURE["feed_forward"] | options}
    tried = with_memory_for(monkeypatch, 1)
    summary = run(specification() | {"model": model}, RunFolder(tmp_path, "mixture"), data)
    assert tried == [4]
    assert summary["status"] == "out_of_memory"
    assert f"not tried with smaller micro-batches, which the {part}" in summary["reason"]


def test_batch_normalization_sees_the_micro_batch_and_sequence_losses_do_not():
    def built(spec, **sizes):
        return build_model(validate(ModelSpec, spec, "model"), **sizes)

    resnet = built({"family": "torchvision", "name": "resnet18"},
                   image_size=32, channels=3, num_classes=10)  # fmt: skip
    assert micro_batches_matter(resnet) == "batch normalization"
    sequence = {"balance": {"sequence_loss": 0.01, "bias_update_rate": 0.01}}
    mixture = MIXTURE | {"feed_forward": MIXTURE["feed_forward"] | sequence}
    assert micro_batches_matter(built(mixture, vocab_size=257)) is None


@given(batch=st.integers(1, 200), data=st.data())
def test_finer_accumulation_divides_and_at_least_halves(batch, data):
    divisors = [parts for parts in range(1, batch + 1) if batch % parts == 0]
    accumulation = data.draw(st.sampled_from(divisors))
    finer = finer_accumulation(batch, accumulation)
    halves = [parts for parts in divisors if batch // parts <= batch // accumulation / 2]
    assert finer == min(halves, default=None)


def test_evaluation_takes_micro_batches_and_its_result_does_not_depend_on_them(data, monkeypatch):
    step = TrainingStep(specification(), data, torch.device("cpu"), None)
    loss, seen = Decoder.loss, []

    def counted(self, tokens, targets, documents):
        seen.append(len(tokens))
        return loss(self, tokens, targets, documents)

    monkeypatch.setattr(Decoder, "loss", counted)
    losses = {}
    for size in (4, 3, 1):
        metrics = step.task.evaluate(step.model, "validation", step.autocast, size)
        losses[size] = metrics["loss"]
    # Two batches of four.
    assert seen == [4, 4] + [3, 3, 2] + [1] * 8
    assert losses[3] == pytest.approx(losses[4], rel=1e-6)
    assert losses[1] == pytest.approx(losses[4], rel=1e-6)
