"""What is exported comes back: specifications equal, tensors bit by bit."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from harness.config.decoder_schema import DecoderSpec
from harness.interchange.folder import export_folder, import_folder
from harness.interchange.read_config import read_config
from harness.interchange.write_config import without_unknown_modules, write_config
from harness.models.decoder import Decoder

VOCABULARY = 11


@st.composite
def attentions(draw, kind):
    heads = draw(st.sampled_from([1, 2, 4]))
    if kind == "gqa":
        return {
            "kind": "gqa",
            "num_attention_heads": heads,
            "num_key_value_heads": draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
            # Not the width that hidden_size implies, which reads back as none.
            "head_dim": draw(st.sampled_from([None, 6])),
            "attention_bias": draw(st.booleans()),
        }
    return {
        "kind": "mla",
        "num_attention_heads": heads,
        "q_lora_rank": draw(st.sampled_from([None, 5])),
        "kv_lora_rank": draw(st.integers(1, 6)),
        "qk_nope_head_dim": draw(st.integers(1, 4)),
        "qk_rope_head_dim": draw(st.sampled_from([2, 4])),
        "v_head_dim": draw(st.integers(1, 5)),
    }


@st.composite
def mixtures(draw, scoring, layers):
    groups = draw(st.sampled_from([1, 2, 3]))
    dense = draw(st.integers(0, layers - 1))
    softmax = scoring == "softmax"
    score = "max" if softmax else "sum_of_top_two"
    rate = 0.0 if softmax else draw(st.sampled_from([0.0, 0.01]))
    return {
        "kind": "moe",
        "moe_intermediate_size": draw(st.integers(1, 5)),
        "n_routed_experts": 6,
        "num_experts_per_tok": draw(st.integers(1, 2)),
        "n_shared_experts": draw(st.integers(0, 2)),
        "scoring_func": scoring,
        "norm_topk_prob": False if softmax else draw(st.booleans()),
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
        "n_group": groups,
        "topk_group": 1 if groups == 1 else draw(st.integers(1, groups)),
        "group_score": score,
        "first_k_dense_replace": dense,
        "intermediate_size": draw(st.integers(1, 9)) if dense else None,
        "capacity_factor": draw(st.sampled_from([None, 1.25])),
        "balance": {"bias_update_rate": rate, "sequence_loss": draw(st.sampled_from([0.0, 0.1]))},
    }


@st.composite
def specs(draw):
    """Every combination of parts that a published architecture has."""
    layers = draw(st.integers(1, 3))
    attention = draw(attentions(draw(st.sampled_from(["gqa", "mla"]))))
    latent = attention["kind"] == "mla"
    kinds = ["swiglu", "sigmoid", *(["softmax"] if latent else [])]
    kind = draw(st.sampled_from(kinds))
    swiglu = {"kind": "swiglu", "intermediate_size": draw(st.integers(1, 9))}
    depth = draw(st.integers(0, 2)) if kind == "sigmoid" else 0
    fp8 = draw(st.sampled_from([None, {"scaling": "row"}]))
    return DecoderSpec.model_validate({
        "family": "decoder",
        "vocab_size": VOCABULARY,
        "hidden_size": 8,
        "num_hidden_layers": layers,
        "attention": attention,
        "feed_forward": swiglu if kind == "swiglu" else draw(mixtures(kind, layers)),
        "prediction": {"depth": depth, "loss_weight": 0.2} if depth else None,
        "linear": fp8,
        "rope_theta": draw(st.sampled_from([1e4, 5e5])),
        "rms_norm_eps": 1e-6 if latent else draw(st.sampled_from([1e-5, 1e-6])),
        "tie_word_embeddings": draw(st.booleans()),
        "initializer_range": draw(st.sampled_from([0.02, 0.006])),
    })  # fmt: skip


def random_decoder(spec: DecoderSpec) -> Decoder:
    model = Decoder(spec, VOCABULARY)
    for tensor in model.state_dict().values():
        torch.nn.init.normal_(tensor)
    for mixture in model.mixtures:
        if mixture.moe.scoring_func == "softmax":
            mixture.routing_bias.zero_()
    return model


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@settings(max_examples=60)
@given(specs())
def test_a_folder_reads_back_as_the_same_decoder(spec):
    model = random_decoder(spec)
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        export_folder(model, folder, max_position_embeddings=64)
        read, state = import_folder(folder)
    assert read == spec
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    Decoder(read, VOCABULARY).load_state_dict(state)


@given(specs())
def test_a_configuration_survives_json(spec):
    config = json.loads(json.dumps(write_config(spec, VOCABULARY, "model")))
    depth = 0 if spec.prediction is None else spec.prediction.depth
    modules = {
        f"model.layers.{spec.num_hidden_layers + module}.eh_proj.weight" for module in range(depth)
    }
    assert read_config(config, modules, "config.json") == spec


def small(**options) -> Decoder:
    attention = {"kind": "gqa", "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    return random_decoder(
        DecoderSpec.model_validate({
            "family": "decoder", "hidden_size": 8, "num_hidden_layers": 2, "attention": attention,
            "feed_forward": {"kind": "swiglu", "intermediate_size": 12}, **options,
        })
    )  # fmt: skip


def test_types_are_kept(tmp_path):
    model = small().bfloat16()
    export_folder(model, tmp_path / "model", max_position_embeddings=64)
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == "bfloat16"
    _, state = import_folder(tmp_path / "model")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}


def test_large_weights_are_split_into_files_and_read_back(tmp_path):
    model = small()
    export_folder(model, tmp_path / "model", max_position_embeddings=64, max_shard_size=1000)
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    _, state = import_folder(tmp_path / "model")
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_modules_that_an_architecture_does_not_have_are_left_out(tmp_path):
    model = small(prediction={"depth": 2})
    assert without_unknown_modules(model.spec).prediction is None
    export_folder(model, tmp_path / "model", max_position_embeddings=64)
    spec, state = import_folder(tmp_path / "model")
    assert spec.prediction is None
    main = [name for name in model.state_dict() if not name.startswith("prediction.")]
    assert sorted(state) == sorted(main)


def test_a_tied_head_may_be_stored_too(tmp_path):
    """Checkpoints of older versions of `transformers` repeat it."""
    from safetensors.torch import save_file

    model = small(tie_word_embeddings=True)
    export_folder(model, tmp_path / "model", max_position_embeddings=64)
    path = tmp_path / "model/model.safetensors"
    tensors = load_file(path)
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    _, state = import_folder(tmp_path / "model")
    assert torch.equal(state["head.weight"], model.embedding.weight)
