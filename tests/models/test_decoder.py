"""Laws of the decoder that hold whatever its parts are; values are checked in `test_parity`."""

import math
from pathlib import Path

import pytest
import torch

from harness.config.base import validate
from harness.config.catalog import load_models
from harness.config.decoder_schema import DecoderSpec
from harness.models.decoder import Decoder
from harness.models.rotary import rotary_angles
from harness.models.token_loss import cross_entropy
from harness.optimizers import route_parameters

VOCABULARY, LENGTH = 61, 12
ATTENTION = {
    "gqa": {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2},
    "mla": {"kind": "mla", "num_attention_heads": 4, "q_lora_rank": 10, "kv_lora_rank": 12,
            "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 10},
}  # fmt: skip
FEED_FORWARD = {
    "swiglu": {"kind": "swiglu", "intermediate_size": 48},
    "moe": {"kind": "moe", "moe_intermediate_size": 16, "n_routed_experts": 8,
            "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 4, "topk_group": 2,
            "first_k_dense_replace": 1, "intermediate_size": 48},
}  # fmt: skip
PARTS = [(attention, feed_forward) for attention in ATTENTION for feed_forward in FEED_FORWARD]


def decoder(attention="gqa", feed_forward="swiglu", **options) -> Decoder:
    spec = {
        "family": "decoder",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "attention": ATTENTION[attention],
        "feed_forward": FEED_FORWARD[feed_forward],
        **options,
    }
    torch.manual_seed(0)
    return Decoder(validate(DecoderSpec, spec, "test"), VOCABULARY).double()


def spread(model: Decoder) -> Decoder:
    """Draw weights so wide that every part matters."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def draw_tokens(*shape: int, seed: int = 1):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("parts", PARTS)
def test_logits_do_not_depend_on_later_tokens(parts):
    model = spread(decoder(*parts))
    tokens, others = draw_tokens(2, LENGTH), draw_tokens(2, LENGTH, seed=2)
    others[:, :7] = tokens[:, :7]
    logits, with_others = model(tokens), model(others)
    torch.testing.assert_close(logits[:, :7], with_others[:, :7], rtol=0, atol=1e-12)
    assert (logits[:, 7:] - with_others[:, 7:]).abs().max() > 0.1


@pytest.mark.parametrize("parts", PARTS)
def test_sequences_do_not_see_each_other(parts):
    model = spread(decoder(*parts))
    tokens = draw_tokens(3, LENGTH)
    alone = torch.cat([model(sequence[None]) for sequence in tokens])
    torch.testing.assert_close(model(tokens), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("parts", PARTS)
def test_only_distances_between_positions_matter(parts):
    model = spread(decoder(*parts))
    tokens = draw_tokens(2, LENGTH)
    x = model.embedding(tokens)
    width, theta = model.spec.rotary_dim, model.spec.rope_theta
    for block in model.blocks:
        x = block(x, rotary_angles(100, LENGTH, width, theta, x.device))
    # Angles are float32: after 100 positions they are off by about 1e-5.
    torch.testing.assert_close(model.head(model.norm(x)), model(tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_trained(parts, tied):
    model = spread(decoder(*parts, tie_word_embeddings=tied, prediction={"depth": 2}))
    tokens = draw_tokens(4, 32)
    objective, _ = model.objective(tokens[:, :-1], tokens[:, 1:], progress=0.0)
    objective.backward()
    idle = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert not idle


@pytest.mark.parametrize("parts", PARTS)
def test_an_untrained_decoder_is_undecided(parts):
    """With small weights all tokens are about equally likely: a loss of log V."""
    tokens = draw_tokens(4, 33)
    loss = decoder(*parts).loss(tokens[:, :-1], tokens[:, 1:])
    assert loss.item() == pytest.approx(math.log(VOCABULARY), rel=0.01)


@pytest.mark.parametrize("parts", PARTS)
def test_texts_side_by_side_are_read_as_if_each_stood_alone(parts):
    model = spread(decoder(*parts))
    tokens_BT, targets_BT = draw_tokens(2, 12), draw_tokens(2, 12, seed=2)
    documents_BT = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [1] * 3])
    lengths = ((5, 7), (9, 3))
    alone = [
        model.loss(tokens[None], targets[None]).item() * len(tokens)
        for row, sizes in enumerate(lengths)
        for tokens, targets in zip(
            tokens_BT[row].split(sizes), targets_BT[row].split(sizes), strict=True
        )
    ]
    together = model.loss(tokens_BT, targets_BT, documents_BT).item()
    # Angles and the softmax of the loss are float32.
    assert together == pytest.approx(sum(alone) / tokens_BT.numel(), rel=1e-6)
    assert together != pytest.approx(model.loss(tokens_BT, targets_BT).item(), rel=1e-4)


def test_the_loss_is_the_mean_over_targets_that_count():
    logits = torch.randn(2, 5, VOCABULARY, generator=torch.Generator().manual_seed(0))
    targets = draw_tokens(2, 5)
    targets[0, 3] = targets[1, 0] = -100
    each = [
        -logits[i, j].log_softmax(0)[targets[i, j]]
        for i in range(2)
        for j in range(5)
        if targets[i, j] != -100
    ]
    assert len(each) == 8
    torch.testing.assert_close(cross_entropy(logits, targets), torch.stack(each).mean())


@pytest.mark.parametrize("parts", PARTS)
def test_a_seed_draws_the_same_main_model_with_and_without_prediction(parts):
    alone, predicting = decoder(*parts), decoder(*parts, prediction={"depth": 2})
    others = predicting.state_dict()
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, others.pop(name)), name
    assert all(name.startswith("prediction.") for name in others)
    tokens = draw_tokens(2, LENGTH)
    assert torch.equal(alone(tokens), predicting(tokens))


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_is_the_embedding(tied):
    model = decoder(tie_word_embeddings=tied)
    assert (model.head.weight is model.embedding.weight) == tied
    names = {name for name, _ in model.named_parameters()}
    assert ("head.weight" in names) != tied


def test_the_published_sample_model_has_its_number_of_parameters():
    """1,235,814,400 parameters, of which 973,078,528 are hidden matrices (ROOT's sample model)."""
    models = load_models(Path(__file__).parents[2] / "config" / "models.yaml")
    with torch.device("meta"):
        model = Decoder(models["decoder_1b"], 128256)
    parameters = dict(model.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == 1_235_814_400
    routes = route_parameters(model)
    matrices = sum(parameters[name].numel() for name in routes if routes[name] == "matrix")
    assert matrices == 973_078_528
