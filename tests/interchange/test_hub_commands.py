"""The commands `harness export` and `harness import` on a run as training leaves it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config.catalog import load_models
from harness.config.decoder_schema import DecoderSpec
from harness.data.tokenizers import make_tokenizer
from harness.errors import UserError
from harness.interchange.commands import export_run, import_model
from harness.models.decoder import Decoder
from harness.training.checkpoint import weights_sha256

SPEC = {
    "family": "decoder", "hidden_size": 8, "num_hidden_layers": 1,
    "attention": {"kind": "gqa", "num_attention_heads": 2, "num_key_value_heads": 1},
    "feed_forward": {"kind": "swiglu", "intermediate_size": 12}, "tie_word_embeddings": True,
}  # fmt: skip
RUN = "decoder_tiny.text.adamw.s0-0123456789ab"


class Results:
    """A folder of results with one run and the dataset that it was trained on."""

    def __init__(self, path):
        self.path, self.run = path, path / "runs" / RUN
        self.data = path / "data" / "text-abc"
        self.run.mkdir(parents=True)
        self.data.mkdir(parents=True)
        tokenizer = make_tokenizer({"type": "bytes"}, (), "test")
        tokenizer.save(str(self.data / "tokenizer.json"))
        self.write(self.data / "manifest.json", {"spec": {"name": "text"}})
        self.vocabulary = tokenizer.get_vocab_size()
        self.train(SPEC)

    def write(self, path, content):
        path.write_text(json.dumps(content))

    def train(self, spec, **changes):
        torch.manual_seed(0)
        self.model = Decoder(DecoderSpec.model_validate(spec), self.vocabulary)
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        save_file(state, self.run / "weights.safetensors")
        summary = {
            "status": "completed",
            "weights_sha256": weights_sha256(state),
            "spec": {
                "model": self.model.spec.model_dump(),
                "dataset": {"name": "text"},
                "training": {"sequence_length": 48},
            },
        }
        self.write(self.run / "summary.json", summary | changes)


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results")


def test_a_run_is_exported_and_imported(results, tmp_path):
    [said] = export_run(results.path, RUN, tmp_path / "hub")
    assert said == f"wrote {tmp_path / 'hub'}"
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert config["max_position_embeddings"] == 48
    assert config["vocab_size"] == results.vocabulary
    tokenizer = (tmp_path / "hub/tokenizer.json").read_text()
    assert tokenizer == (results.data / "tokenizer.json").read_text()

    said = import_model(tmp_path / "hub", tmp_path / "mine")
    assert said[0] == f"wrote {tmp_path / 'mine'}: 12 tensors of type float32"
    entry = load_models(tmp_path / "mine/model.yaml")["mine"]
    assert entry == results.model.spec.model_copy(update={"vocab_size": results.vocabulary})
    weights = load_file(tmp_path / "mine/weights.safetensors")
    expected = load_file(results.run / "weights.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"linear": {"scaling": "row"}}, "the weights are the float32 ones"),
        ({"prediction": {"depth": 1}}, "the modules of multi-token prediction are left out"),
    ],
)
def test_what_a_folder_does_not_say_is_said(results, tmp_path, options, note):
    results.train(SPEC | options)
    _, said = export_run(results.path, RUN, tmp_path / "hub")
    assert said.startswith(note)


def failing(results):
    """Return what is wrong by name: how it comes about and what is said."""

    def forget_weights():
        (results.run / "weights.safetensors").unlink()

    def change_weights():
        path = results.run / "weights.safetensors"
        save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)

    def become_images():
        summary = json.loads((results.run / "summary.json").read_text())
        summary["spec"]["model"] = {"family": "torchvision", "name": "resnet18"}
        results.write(results.run / "summary.json", summary)

    return {
        "diverged": (
            lambda: results.train(SPEC, status="diverged"),
            "found a run that is diverged, expected a completed one",
        ),
        "unfinished": (
            (results.run / "summary.json").unlink, "found a run that is unfinished, expected",
        ),
        "images": (become_images, "spec.model.family: found 'torchvision', expected 'decoder'"),
        "no weights": (forget_weights, "weights.safetensors: no such file; expected the weights"),
        "other weights": (change_weights, "weights differ from the digest in summary.json"),
        "no dataset": (
            lambda: results.write(results.data / "manifest.json", {"spec": {"name": "other"}}),
            "found no prepared dataset of this run; expected the one that it was trained on",
        ),
        "combine": (
            lambda: results.train(SPEC | {"combine": {"format": "logfmt8", "tile": 8}}),
            "summary.json: spec.model: combine: found logfmt8, expected none",
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["diverged", "unfinished", "images", "no weights", "other weights", "no dataset", "combine"],
)
def test_a_run_that_cannot_be_exported_is_refused(results, tmp_path, name):
    change, message = failing(results)[name]
    change()
    with pytest.raises(UserError, match=message) as error:
        export_run(results.path, RUN, tmp_path / "hub")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hub").exists()


def test_an_unknown_run_is_answered_with_the_nearest(results, tmp_path):
    with pytest.raises(UserError, match=f"found no run '{RUN[:-1]}' .did you mean '{RUN}'"):
        export_run(results.path, RUN[:-1], tmp_path / "hub")
    with pytest.raises(UserError, match="found no run 'x'"):
        export_run(tmp_path / "nowhere", "x", tmp_path / "hub")
