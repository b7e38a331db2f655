"""Configurations of published architectures, and what of them the harness refuses."""

import pytest
from transformers import AutoConfig

from harness.config.decoder_schema import DecoderSpec
from harness.errors import UserError
from harness.interchange.published import (
    ARCHITECTURES,
    DeepseekV2,
    DeepseekV3,
    Glm4Moe,
    Llama,
    Qwen2,
)
from harness.interchange.read_config import read_config
from harness.interchange.write_config import write_config

GQA = {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2}
MLA = {"kind": "mla", "num_attention_heads": 4, "kv_lora_rank": 8, "qk_nope_head_dim": 8,
       "qk_rope_head_dim": 4, "v_head_dim": 8}  # fmt: skip
SWIGLU = {"kind": "swiglu", "intermediate_size": 48}
MOE = {"kind": "moe", "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 2}
SOFTMAX = MOE | {"scoring_func": "softmax", "norm_topk_prob": False}
GROUPS = {"n_group": 2, "topk_group": 1}


def make_spec(attention, feed_forward, **options) -> DecoderSpec:
    return DecoderSpec.model_validate({
        "family": "decoder", "hidden_size": 32, "num_hidden_layers": 2, "attention": attention,
        "feed_forward": feed_forward, **options,
    })  # fmt: skip


@pytest.mark.parametrize("schema", [Llama, Qwen2, Glm4Moe, DeepseekV2, DeepseekV3])
def test_defaults_are_those_of_transformers(schema):
    name = schema.model_fields["model_type"].default
    theirs = AutoConfig.for_model(name)
    rope = theirs.rope_parameters
    for key, field in schema.model_fields.items():
        if field.is_required() or field.exclude or key in ("head_dim", "layer_types"):
            continue
        if key in ("rope_theta", "partial_rotary_factor"):
            assert rope[key] == field.default
        elif hasattr(theirs, key):
            found = getattr(theirs, key)
            # Without a number of groups they have one for each head, as ours.
            heads = theirs.num_attention_heads
            assert found == (heads if key == "num_key_value_heads" else field.default), key
        else:
            # Of DeepSeek's own code, or of none for other values.
            assert key in ("scoring_func", "topk_method", "use_sliding_window"), key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_of_classes_are_those_of_transformers(name):
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name] == ARCHITECTURES[name]


@pytest.mark.parametrize(
    ("attention", "feed_forward", "name"),
    [
        (GQA, SWIGLU, "llama"),
        (GQA | {"attention_bias": True}, SWIGLU, "llama"),
        (GQA, MOE, "glm4_moe"),
        (MLA, SWIGLU, "deepseek_v3"),
        (MLA, MOE, "deepseek_v3"),
        (MLA, SOFTMAX, "deepseek_v2"),
    ],
)
def test_parts_have_their_architecture(attention, feed_forward, name):
    assert write_config(make_spec(attention, feed_forward), 61, "model")["model_type"] == name


REFUSED = {
    "combine": (
        make_spec(GQA, SWIGLU, combine={"format": "logfmt8", "tile": 16}),
        "combine: found logfmt8, expected none: no published architecture quantises",
    ),
    "softmax without latents": (
        make_spec(GQA, SOFTMAX),
        "feed_forward.scoring_func: found softmax, expected sigmoid: with attention.kind gqa",
    ),
    "sigmoid and max": (
        make_spec(MLA, MOE | GROUPS | {"group_score": "max"}),
        "feed_forward.group_score: found max, expected sum_of_top_two:",
    ),
    "softmax and top two": (
        make_spec(MLA, SOFTMAX | GROUPS),
        "feed_forward.group_score: found sum_of_top_two, expected max:",
    ),
    "softmax, normalised": (
        make_spec(MLA, SOFTMAX | {"norm_topk_prob": True}),
        "feed_forward.norm_topk_prob: found True, expected False: with scoring_func softmax",
    ),
    "softmax with a bias": (
        make_spec(MLA, SOFTMAX | {"balance": {"bias_update_rate": 0.001}}),
        "feed_forward.balance.bias_update_rate: found 0.001, expected 0.0: with scoring_func",
    ),
    "width": (
        make_spec(GQA | {"head_dim": 8}, SWIGLU, hidden_size=30),
        "hidden_size: found 30, expected a multiple of 4: LlamaConfig insists",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_architecture_computes_is_refused_in_one_line(name):
    spec, message = REFUSED[name]
    with pytest.raises(UserError) as error:
        write_config(spec, 61, "run: model")
    assert str(error.value).startswith(f"run: model: {message}")
    assert "\n" not in str(error.value)


# What all five have, as `transformers` 4.56 and the published files write it.
SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 5e5,
         "rope_scaling": None, "torch_dtype": "bfloat16"}  # fmt: skip
LLAMA = SIZES | {"model_type": "llama"}
V3 = SIZES | {
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "moe_intermediate_size": 16,
    "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "rms_norm_eps": 1e-6,
}  # fmt: skip
GLM = {key: V3[key] for key in SIZES | MOE if key in V3} | {
    "model_type": "glm4_moe", "n_shared_experts": 1, "norm_topk_prob": True, "topk_group": 1,
    "routed_scaling_factor": 1.0, "n_group": 1, "first_k_dense_replace": 1,
    "partial_rotary_factor": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "rope"),
    [
        (LLAMA, {}),
        (LLAMA, {"rope_theta": None, "rope_parameters": {"rope_theta": 7.0}}),
        (LLAMA, {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}),
        (LLAMA, {"rope_scaling": {"type": "default"}}),
        (GLM, {"rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 1.0}}),
    ],
)
def test_both_ways_to_write_rotary_positions_are_read(data, rope):
    expected = 7.0 if "rope_parameters" in rope else 5e5
    assert read_config(data | rope, (), "config.json").rope_theta == expected


def test_the_depth_of_prediction_is_that_of_the_weights():
    data = V3 | {"num_nextn_predict_layers": 1}
    assert read_config(data, (), "config.json").prediction is None
    tensors = ["model.layers.2.eh_proj.weight", "model.layers.3.eh_proj.weight"]
    assert read_config(data, tensors, "config.json").prediction.depth == 2


UNREADABLE = {
    "unknown": (LLAMA, {"model_type": "lama"}, "model_type: found 'lama' (did you mean 'llama'?)"),
    "none near": (LLAMA, {"model_type": "t5"}, "model_type: found 't5' (valid: deepseek_v2, "),
    "missing": (LLAMA, {"model_type": None}, "model_type: found 'None' (valid: "),
    "yarn": (V3, {"rope_scaling": {"type": "yarn", "factor": 40}}, "rope_scaling: found 'yarn'"),
    "llama3": (
        LLAMA, {"rope_parameters": {"rope_type": "llama3"}}, "rope_scaling: found 'llama3'",
    ),
    "part of the channels": (GLM, {"partial_rotary_factor": 0.5}, "partial_rotary_factor: found"),
    "quantised": (
        V3, {"quantization_config": {"quant_method": "fp8"}}, "quantization_config: found {",
    ),
    "activation": (LLAMA, {"hidden_act": "gelu"}, "hidden_act: found 'gelu', expected 'silu'"),
    "window": (
        LLAMA | {"model_type": "qwen2"}, {"use_sliding_window": True}, "use_sliding_window: found",
    ),
    "norms of queries": (GLM, {"use_qk_norm": True}, "use_qk_norm: found True, expected false"),
    "biases": (V3, {"attention_bias": True}, "attention_bias: found True, expected false"),
    "groups of keys": (V3, {"num_key_value_heads": 2}, "num_key_value_heads: found 2, expected 4"),
    "method": (V3, {"topk_method": "greedy"}, "topk_method: found 'greedy', expected 'noaux_tc'"),
    "layout": (V3, {"rope_interleave": False}, "rope_interleave: found False, expected true"),
    "every other layer": (V3, {"moe_layer_freq": 2}, "moe_layer_freq: found 2, expected 1"),
    "size": (LLAMA, {"hidden_size": 0}, "hidden_size: found 0, expected greater than 0"),
    "heads": (LLAMA, {"num_key_value_heads": 3}, "attention: num_key_value_heads 3 does not"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_the_harness_does_not_compute_is_refused_in_one_line(name):
    data, change, message = UNREADABLE[name]
    read_config(data, (), "config.json")
    with pytest.raises(UserError) as error:
        read_config(data | change, (), "config.json")
    assert str(error.value).startswith(f"config.json: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [LLAMA, V3, GLM])
def test_a_missing_size_is_named(data):
    with pytest.raises(UserError, match=r"^config\.json: hidden_size: required key is missing"):
        read_config({k: v for k, v in data.items() if k != "hidden_size"}, (), "config.json")
