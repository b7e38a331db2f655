"""Closed forms of training operations against torch's counter and published numbers."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.config.base import validate
from harness.config.catalog import load_models
from harness.config.decoder_schema import DecoderSpec
from harness.models import build_model
from harness.models.flops import decoder_training_flops, training_flops_per_example

MODELS = load_models(Path(__file__).parents[2] / "config" / "models.yaml")
GROUPED = {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
           "attention_bias": True}  # fmt: skip
# Values wider than keys: narrower ones are padded before the kernel, and the counter sees that.
LATENT = {"kind": "mla", "num_attention_heads": 3, "q_lora_rank": 14, "kv_lora_rank": 18,
          "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 16}  # fmt: skip
DENSE = {"kind": "swiglu", "intermediate_size": 40}
EXPERTS = {"kind": "moe", "moe_intermediate_size": 12, "n_routed_experts": 6,
           "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1,
           "intermediate_size": 40}  # fmt: skip


def small(**parts) -> DecoderSpec:
    data = {"family": "decoder", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3,
            "attention": GROUPED, "feed_forward": DENSE}  # fmt: skip
    return validate(DecoderSpec, data | parts, "test")


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention": LATENT},
        {"attention": LATENT | {"q_lora_rank": None}},
        {"feed_forward": EXPERTS},
        {"attention": LATENT, "feed_forward": EXPERTS},
        {"prediction": {"depth": 2}},
        {"attention": LATENT, "feed_forward": EXPERTS, "prediction": {"depth": 1}},
    ],
    ids=lambda parts: "+".join(parts) or "dense",
)
def test_the_closed_form_equals_a_count_of_all_matrix_products(parts):
    spec = small(**parts)
    model = build_model(spec)
    tokens = torch.randint(50, (2, 24))
    # Only the plain kernel is made of products that the counter knows; it takes the whole square.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective, _ = model.objective(tokens, tokens, 0.0)
        objective.backward()
    assert counter.get_total_flops() == 2 * decoder_training_flops(spec, 24, causal=False)


@pytest.mark.parametrize(
    ("name", "causal", "full"),
    [
        ("deepseek_v2", 155.30, 185.50),
        ("deepseek_v3", 250.45, 281.15),
        ("qwen2_5_72b", 444.86, 460.96),
        ("llama3_1_405b", 2473.22, 2523.96),
    ],
)
def test_published_models_at_sequence_length_4096(name, causal, full):
    for triangle, expected in ((True, causal), (False, full)):
        flops = decoder_training_flops(MODELS[name], 4096, causal=triangle, prediction=False)
        assert flops / 4096 / 1e9 == pytest.approx(expected, abs=0.005)


def test_causal_attention_is_half_of_the_square():
    spec = small(attention=LATENT, prediction={"depth": 1})
    causal, full = (decoder_training_flops(spec, 64, causal=half) for half in (True, False))
    # Widths 10 and 16 of 3 heads, 3 layers over 64 positions and one over 63.
    assert full - causal == 3 * (10 + 16) * 3 * (3 * 64**2 + 63**2)


def test_the_cost_of_an_example_is_that_of_a_causal_sequence():
    spec = MODELS["deepseek_v3"]
    head = spec.hidden_size * spec.vocab_size
    assert training_flops_per_example(spec, 512) == decoder_training_flops(spec, 512)
    # Without a vocabulary there is no head, neither the model's nor the prediction module's.
    unknown = spec.model_copy(update={"vocab_size": None})
    missing = decoder_training_flops(spec, 512) - training_flops_per_example(unknown, 512)
    assert missing == 6 * head * (512 + 511)
