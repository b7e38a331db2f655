"""Folders appear whole or not at all, carry published names, and broken ones are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config.decoder_schema import DecoderSpec
from harness.data.tokenizers import END_OF_TEXT, make_tokenizer
from harness.errors import UserError
from harness.interchange import folder as folder_module
from harness.interchange.folder import export_folder, import_folder
from harness.models.decoder import Decoder

GQA = {"kind": "gqa", "num_attention_heads": 2, "num_key_value_heads": 1}
MLA = {"kind": "mla", "num_attention_heads": 2, "q_lora_rank": 6, "kv_lora_rank": 8,
       "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4}  # fmt: skip
MOE = {"kind": "moe", "moe_intermediate_size": 6, "n_routed_experts": 2, "num_experts_per_tok": 1,
       "n_shared_experts": 1}  # fmt: skip
TEXTS = ["in the year 12345 a cafe\u0301 in the year 12345"] * 5


def decoder(vocabulary=16, **options) -> Decoder:
    spec = DecoderSpec.model_validate({
        "family": "decoder", "hidden_size": 8, "num_hidden_layers": 1, "attention": GQA,
        "feed_forward": {"kind": "swiglu", "intermediate_size": 12}, **options,
    })  # fmt: skip
    torch.manual_seed(0)
    return Decoder(spec, vocabulary)


@pytest.fixture
def exported(tmp_path):
    """Return a function that exports a decoder."""

    def export(**options):
        path = tmp_path / "model"
        export_folder(decoder(**options), path, max_position_embeddings=64)
        return path

    return export


def test_names_are_those_of_the_released_deepseek_v3(exported):
    """The names in the weight map of deepseek-ai/DeepSeek-V3, without scales, for two experts."""
    path = exported(attention=MLA, feed_forward=MOE, prediction={"depth": 1}, rms_norm_eps=1e-6)
    block = {
        "input_layernorm", "mlp.experts.0.down_proj", "mlp.experts.0.gate_proj",
        "mlp.experts.0.up_proj", "mlp.experts.1.down_proj", "mlp.experts.1.gate_proj",
        "mlp.experts.1.up_proj", "mlp.gate", "mlp.shared_experts.down_proj",
        "mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "post_attention_layernorm",
        "self_attn.kv_a_layernorm", "self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj",
        "self_attn.o_proj", "self_attn.q_a_layernorm", "self_attn.q_a_proj", "self_attn.q_b_proj",
    }  # fmt: skip
    module = {"embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head"}
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    expected |= {f"model.layers.0.{name}.weight" for name in block}
    expected |= {f"model.layers.1.{name}.weight" for name in block | module}
    expected |= {f"model.layers.{n}.mlp.gate.e_score_correction_bias" for n in (0, 1)}
    assert load_file(path / "model.safetensors").keys() == expected


def test_modules_of_prediction_repeat_embedding_and_head(exported):
    path = exported(attention=MLA, feed_forward=MOE, prediction={"depth": 1}, rms_norm_eps=1e-6)
    tensors = load_file(path / "model.safetensors")
    for copy, original in (
        ("embed_tokens", "model.embed_tokens.weight"),
        ("shared_head.head", "lm_head.weight"),
    ):
        assert torch.equal(tensors[f"model.layers.1.{copy}.weight"], tensors[original])


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(folder_module, "save_torch_state_dict", fail)
    with pytest.raises(OSError, match="no space left"):
        export_folder(decoder(), tmp_path / "model", max_position_embeddings=64)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled_and_any_other_is_left_alone(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    export_folder(decoder(), path, max_position_embeddings=64)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(UserError, match="exists; expected a new folder or an empty one"):
        export_folder(decoder(), path, max_position_embeddings=32)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    with pytest.raises(UserError, match="exists; expected a new folder"):
        export_folder(decoder(), path / "config.json", max_position_embeddings=32)


@pytest.mark.parametrize("spec", [{"type": "bytes"}, {"type": "bpe", "vocab_size": 300}])
@pytest.mark.parametrize("bias", [False, True])
def test_transformers_splits_texts_as_in_training(tmp_path, spec, bias):
    """Digits, decomposed accents and spaces are where tokenizers of architectures differ."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = make_tokenizer(spec, TEXTS, "test")
    ours.save(str(tmp_path / "tokenizer.json"))
    export_folder(
        decoder(ours.get_vocab_size(), attention=GQA | {"attention_bias": bias}),
        tmp_path / "model",
        max_position_embeddings=64,
        tokenizer_file=tmp_path / "tokenizer.json",
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in [*TEXTS[:1], "year 12345", "cafe\u0301", "  two\n\n\tlines ", f"a{END_OF_TEXT}b"]:
        assert theirs(text)["input_ids"] == ours.encode(text).ids
        assert theirs.decode(theirs(text)["input_ids"]) == text
    end = ours.token_to_id(END_OF_TEXT)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert theirs.eos_token_id == theirs.bos_token_id == end
    assert model.generation_config.eos_token_id == end
    assert theirs.model_max_length == model.config.max_position_embeddings == 64
    model.generate(**theirs("in the", return_tensors="pt"), max_new_tokens=2)


def drop(tensors):
    del tensors["model.norm.weight"]


def add(tensors):
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(4)


def reshape(tensors):
    tensors["model.norm.weight"] = torch.ones(9)


BROKEN = {
    "missing": ({}, drop, "model.norm.weight: no such tensor; expected those of the architecture"),
    "unknown": ({}, add, "model.layers.0.self_attn.q_norm.weight: found a tensor that the"),
    "shape": ({}, reshape, r"model.norm.weight: found shape \(9,\), expected \(8,\)"),
    "biased output": (
        {"attention": GQA | {"attention_bias": True}},
        lambda tensors: tensors["model.layers.0.self_attn.o_proj.bias"].fill_(1.0),
        "model.layers.0.self_attn.o_proj.bias: found values other than zero",
    ),
    "another embedding": (
        {"attention": MLA, "feed_forward": MOE, "prediction": {"depth": 1}, "rms_norm_eps": 1e-6},
        lambda tensors: tensors["model.layers.1.embed_tokens.weight"].zero_(),
        "model.layers.1.embed_tokens.weight: differs from the tensor that it should share",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_that_do_not_fit_are_refused(exported, name):
    options, change, message = BROKEN[name]
    path = exported(**options)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(UserError, match=f"{path}: {message}") as error:
        import_folder(path)
    assert "\n" not in str(error.value)


def test_missing_and_broken_files_are_named(exported):
    path = exported()
    config, weights = path / "config.json", path / "model.safetensors"
    content = config.read_text()
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        import_folder(path)
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        import_folder(path)
    config.write_text(content[:-10])
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        import_folder(path)
    config.write_text(json.dumps([content]))
    with pytest.raises(UserError, match=r"config\.json: found list, expected an object"):
        import_folder(path)
    config.unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file; expected a folder of"):
        import_folder(path)
