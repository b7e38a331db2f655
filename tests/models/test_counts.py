"""Closed forms of parameters against built models, ours and those of `transformers`."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from harness.config.base import validate
from harness.config.catalog import load_models
from harness.config.decoder_schema import DecoderSpec, MixtureOfExperts
from harness.models import build_model
from harness.models.counts import (
    activated_parameters,
    cached_elements,
    count_parameters,
    matrix_parameters,
    total_parameters,
)
from harness.models.mixture import Mixture

MODELS = load_models(Path(__file__).parents[2] / "config" / "models.yaml")
REFERENCES = {
    "deepseek_67b": LlamaConfig,
    "deepseek_v2_lite": DeepseekV2Config,
    "deepseek_v2": DeepseekV2Config,
    "deepseek_v3": DeepseekV3Config,
    "qwen2_5_72b": Qwen2Config,
    "llama3_1_405b": LlamaConfig,
    "llama3_2_1b": LlamaConfig,
}


def reference_config(name: str) -> PretrainedConfig:
    spec = MODELS[name]
    attention = spec.attention.model_dump(exclude={"kind", "attention_bias", "head_dim"})
    attention.setdefault("num_key_value_heads", spec.attention.num_attention_heads)
    feed_forward = spec.feed_forward.model_dump(exclude={"kind", "balance", "capacity_factor"})
    own = ("vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings")
    sizes = {key: getattr(spec, key) for key in own}
    return REFERENCES[name](**sizes, **attention, **feed_forward)


def numel(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", REFERENCES)
def test_published_models_have_the_parameters_of_their_transformers_implementation(name):
    with torch.device("meta"):
        reference = AutoModelForCausalLM.from_config(reference_config(name))
    assert total_parameters(MODELS[name]) == numel(reference)


@pytest.mark.parametrize("name", REFERENCES)
def test_published_models_have_the_parameters_of_our_implementation(name):
    with torch.device("meta"):
        model = build_model(MODELS[name])
    assert sum(part.total for part in count_parameters(MODELS[name]).values()) == numel(model)


@pytest.mark.parametrize(
    ("name", "total", "matrices"),
    [
        ("deepseek_v2", 236e9, 20.850e9),
        ("deepseek_v3", 671e9, 36.625e9),
        ("qwen2_5_72b", 72.7e9, 71.458e9),
        ("llama3_1_405b", 406e9, 403.748e9),
    ],
)
def test_published_sizes(name, total, matrices):
    # Names round to billions, the others are sums of matrices printed to a million.
    assert total_parameters(MODELS[name]) == pytest.approx(total, rel=2e-3)
    assert matrix_parameters(MODELS[name]) == pytest.approx(matrices, abs=1e6)
    assert activated_parameters(MODELS[name]) == pytest.approx(matrices, rel=1e-4)


def test_a_prediction_module_of_deepseek_v3_has_its_11_61_billion_parameters():
    counts = count_parameters(MODELS["deepseek_v3"])
    assert counts["prediction"].total == pytest.approx(11.61e9, abs=5e6)


GROUPED = st.builds(
    lambda groups, repeats, width, bias: {
        "kind": "gqa", "num_attention_heads": groups * repeats, "num_key_value_heads": groups,
        "head_dim": 2 * width, "attention_bias": bias,
    },
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.booleans(),
)  # fmt: skip
LATENT = st.builds(
    lambda heads, query, rank, plain, rotary, value: {
        "kind": "mla", "num_attention_heads": heads, "q_lora_rank": query, "kv_lora_rank": rank,
        "qk_nope_head_dim": plain, "qk_rope_head_dim": 2 * rotary, "v_head_dim": value,
    },
    st.integers(1, 4), st.none() | st.integers(1, 6), *[st.integers(1, 6)] * 4,
)  # fmt: skip
DENSE = st.builds(lambda width: {"kind": "swiglu", "intermediate_size": width}, st.integers(1, 20))
EXPERTS = st.builds(
    lambda chosen, idle, shared, width, first: {
        "kind": "moe", "moe_intermediate_size": width, "n_routed_experts": chosen + idle,
        "num_experts_per_tok": chosen, "n_shared_experts": shared,
        "first_k_dense_replace": first, "intermediate_size": 2 * width + 1,
    },
    st.integers(1, 3), st.integers(0, 4), st.integers(0, 2), st.integers(1, 9), st.integers(0, 1),
)  # fmt: skip
SPECS = st.builds(
    lambda attention, feed_forward, width, layers, tied, depth: validate(
        DecoderSpec,
        {
            "family": "decoder",
            "vocab_size": 23,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "attention": attention,
            "feed_forward": feed_forward,
            "tie_word_embeddings": tied,
            "prediction": {"depth": depth} if depth else None,
        },
        "test",
    ),
    GROUPED | LATENT, DENSE | EXPERTS, st.integers(3, 24), st.integers(2, 3), st.booleans(),
    st.integers(0, 2),
)  # fmt: skip


def part_of(name: str, parameter: torch.Tensor) -> str:
    first = name.split(".")[0]
    if first in ("embedding", "head", "prediction"):
        return first
    if "norm" in name:
        return "norms"
    if ".attention." in name:
        return "attention"
    if ".router" in name:
        return "router"
    if ".shared" in name:
        return "shared_experts"
    return "experts" if parameter.ndim == 3 else "dense"


@given(spec=SPECS)
def test_every_part_has_the_parameters_of_the_built_model(spec):
    with torch.device("meta"):
        model = build_model(spec)
    built: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name, parameter)
        built[part] = built.get(part, 0) + parameter.numel()
    counted = {part: count.total for part, count in count_parameters(spec).items() if count.total}
    assert counted == built


@given(spec=SPECS)
def test_active_parameters_are_all_but_the_lookup_and_the_idle_experts(spec):
    moe = spec.feed_forward
    lookup = 0 if spec.tie_word_embeddings else 23 * spec.hidden_size
    idle = 0
    if isinstance(moe, MixtureOfExperts):
        layers = spec.num_hidden_layers - moe.first_k_dense_replace
        expert = 3 * spec.hidden_size * moe.moe_intermediate_size
        idle = layers * expert * (moe.n_routed_experts - moe.num_experts_per_tok)
    assert activated_parameters(spec) == total_parameters(spec) - lookup - idle


@given(spec=SPECS)
def test_what_a_cache_holds_is_what_the_built_model_allocates(spec):
    with torch.device("meta"):
        model = build_model(spec)
    naive, served = (
        model.new_cache(3, 7, form=form, dtype=torch.float64) for form in ("naive", "absorbed")
    )
    layers = spec.num_hidden_layers + (spec.prediction.depth if spec.prediction else 0)
    assert naive.nbytes == 8 * 3 * 7 * layers * cached_elements(spec, "heads")
    kept = "latent" if spec.attention.kind == "mla" else "heads"
    assert served.nbytes == 8 * 3 * 7 * layers * cached_elements(spec, kept)


def test_a_token_reaches_as_many_expert_weights_as_are_active():
    spec = MODELS["deepseek_v2_lite"].model_copy(update={"hidden_size": 16})
    mixture = Mixture(spec)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter)
    mixture(torch.randn(1, 1, 16)).sum().backward()
    reached = sum(
        int((parameter.grad != 0).sum())
        for parameter in mixture.parameters()
        if parameter.ndim == 3
    )
    layers = spec.num_hidden_layers - spec.feed_forward.first_k_dense_replace
    assert reached == count_parameters(spec)["experts"].active // layers


def test_a_latent_is_asked_only_of_latent_attention():
    with pytest.raises(ValueError, match="content: found latent, expected heads or multi_head"):
        cached_elements(MODELS["llama3_2_1b"], "latent")


def test_a_vocabulary_is_needed():
    with pytest.raises(ValueError, match="vocab_size: found none"):
        total_parameters(MODELS["decoder_tiny"])
    assert total_parameters(MODELS["decoder_1b"], 128256) == 1_235_814_400
