"""Our decoder against the `transformers` implementation of Llama with the same weights."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.models import build_model

NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
PARTS = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}


def reference_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, layer, part = name.split(".", 2)
    return f"model.layers.{layer}.{PARTS[part.removesuffix('.weight')]}.weight"


def pair(key_value_heads: int, tied: bool, head_dim: int | None):
    attention = {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": key_value_heads,
                 "head_dim": head_dim}  # fmt: skip
    spec = {
        "family": "decoder",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "attention": attention,
        "feed_forward": {"kind": "swiglu", "intermediate_size": 48},
        "rope_theta": 5000.0,
        "tie_word_embeddings": tied,
    }
    torch.manual_seed(0)
    ours = build_model(validate(ModelSpec, spec, "test"), vocab_size=61).double()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim or 8,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )
    theirs = LlamaForCausalLM(config).double()
    state = {reference_name(name): value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("key_value_heads", "head_dim"), [(4, None), (2, None), (1, 12)])
def test_logits_and_gradients_equal_transformers(key_value_heads, head_dim, tied):
    ours, theirs = pair(key_value_heads, tied, head_dim)
    tokens = torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(1))
    logits, expected = ours(tokens), theirs(tokens).logits
    # Rotary angles are computed in float32 on both sides.
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    logits.square().mean().backward()
    expected.square().mean().backward()
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        their_gradient = reference[reference_name(name)].grad
        torch.testing.assert_close(parameter.grad, their_gradient, rtol=1e-4, atol=1e-5)


def test_loss_is_the_mean_cross_entropy():
    ours, theirs = pair(2, False, None)
    tokens = torch.randint(61, (3, 11), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens, labels=tokens).loss
    # transformers shifts the labels itself.
    torch.testing.assert_close(
        ours.loss(tokens[:, :-1], tokens[:, 1:]).double(), expected.double(), rtol=1e-5, atol=1e-5
    )


def test_the_published_sample_model_has_its_number_of_parameters():
    """1,235,814,400 parameters, of which 973,078,528 are hidden matrices (ROOT's sample model)."""
    from pathlib import Path

    from harness.config.yaml_file import read_yaml
    from harness.optimizers import route_parameters

    models = read_yaml(Path(__file__).parents[2] / "config" / "models.yaml")
    with torch.device("meta"):
        model = build_model(validate(ModelSpec, models["decoder_1b"], "test"), vocab_size=128256)
    parameters = dict(model.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == 1_235_814_400
    routes = route_parameters(model)
    matrices = sum(parameters[name].numel() for name in routes if routes[name] == "matrix")
    assert matrices == 973_078_528
