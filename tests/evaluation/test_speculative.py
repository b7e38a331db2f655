"""Speculative decoding against plain decoding, exact distributions and modules without a cache."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.evaluation.generation import GREEDY, Sampling, generate
from harness.evaluation.speculative import (
    Drafter,
    acceptance,
    generate_speculatively,
    residual,
)
from harness.models import build_model

GQA = {"kind": "gqa", "num_attention_heads": 2, "num_key_value_heads": 1}
MLA = {"kind": "mla", "num_attention_heads": 2, "kv_lora_rank": 6, "qk_nope_head_dim": 4,
       "qk_rope_head_dim": 2, "v_head_dim": 3}  # fmt: skip


def build(depth: int | None, *, seed: int = 0, vocabulary: int = 4, attention=GQA, layers: int = 2):
    spec = {"family": "decoder", "hidden_size": 8, "num_hidden_layers": layers,
            "attention": attention, "feed_forward": {"kind": "swiglu", "intermediate_size": 12},
            "prediction": None if depth is None else {"depth": depth}}  # fmt: skip
    torch.manual_seed(seed)
    model = build_model(validate(ModelSpec, spec, "test"), vocab_size=vocabulary).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model


def prompt(length: int = 5, vocabulary: int = 4):
    return torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("attention", [GQA, MLA], ids=["gqa", "mla"])
def test_greedy_tokens_equal_those_of_plain_decoding(attention, depth, length):
    drafted = accepted = 0
    for seed in range(6):
        model = build(depth, seed=seed, attention=attention)
        result = generate_speculatively(model, prompt(length), 20)
        assert torch.equal(result.tokens_1N, generate(model, prompt(length), 20))
        drafted, accepted = drafted + result.drafted[0], accepted + result.accepted[0]
    # Untrained modules hit one of four tokens now and then.
    assert 0.05 < accepted / drafted < 0.95


@pytest.mark.parametrize("sampling", [GREEDY, Sampling()], ids=["greedy", "sampled"])
@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("depth", [1, 2, 3])
@torch.no_grad()
def test_modules_draft_from_the_states_of_final_tokens(monkeypatch, depth, length, sampling):
    """Every draft comes from what the modules compute on the whole sequence without a cache."""
    model, draft, calls = build(depth), Drafter.draft, []

    def recorded(drafter, tokens, count):
        drafts, q = draft(drafter, tokens, count)
        if count:
            calls.append((tokens, drafts, q))
        return drafts, q

    monkeypatch.setattr(Drafter, "draft", recorded)
    generator = torch.Generator().manual_seed(0)
    generate_speculatively(model, prompt(length), 30, sampling=sampling, generator=generator)
    assert len(calls) > 5
    for tokens, drafts, q in calls:
        known = tokens.shape[1] - 1
        sequence = torch.cat((tokens, drafts), dim=1)
        state = model.features(tokens[:, :known])
        for place, module in enumerate(list(model.prediction)[: len(q)]):
            embedded = model.embedding(sequence[:, place + 1 : known + place + 1])
            state = module(state, embedded)
            expected = sampling.probabilities(model.head(state[0, -1]))
            # Probabilities are float32.
            torch.testing.assert_close(q[place], expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=25)
@given(right=st.lists(st.booleans(), min_size=60, max_size=60), depth=st.integers(1, 3))
def test_any_drafts_give_the_tokens_of_plain_decoding_and_are_counted(right, depth):
    model, new_tokens = build(depth), 14
    expected = generate(model, prompt(), new_tokens)
    wishes, drafted, accepted = iter(right), [0] * depth, [0] * depth

    def made_up(drafter, tokens, count):
        done, vocabulary = tokens.shape[1] - 5, model.head.out_features
        truth = expected[:, done : done + count]
        correct = torch.tensor([[next(wishes) for _ in range(count)]], dtype=torch.bool)
        for place in range(count):
            drafted[place] += 1
            accepted[place] += bool(correct[0, : place + 1].all())
        drafts = truth.where(correct.view_as(truth), (truth + 1) % vocabulary)
        return drafts, torch.nn.functional.one_hot(drafts[0], vocabulary).float()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drafter, "draft", made_up)
        patch.setattr(Drafter, "observe", lambda drafter, features: None)
        result = generate_speculatively(model, prompt(), new_tokens)
    assert torch.equal(result.tokens_1N, expected)
    assert (result.drafted, result.accepted) == (tuple(drafted), tuple(accepted))
    # Each pass adds the accepted drafts and one token.
    assert result.forwards + sum(accepted) == new_tokens
    assert result.tokens_per_forward == new_tokens / result.forwards


def joint_distribution(model, start, count):
    """Exact probability of every continuation of ``count`` tokens, first token slowest."""
    vocabulary = model.head.out_features
    continuations = torch.tensor(list(product(range(vocabulary), repeat=count)))
    sequences = torch.cat((start.expand(len(continuations), -1), continuations), dim=1)
    logs = model(sequences)[:, -count - 1 : -1].log_softmax(-1)
    return logs.gather(2, continuations[..., None]).sum(dim=(1, 2)).exp()


def test_sampled_tokens_have_the_distribution_of_the_main_model():
    """Chi-square of the joint of the first tokens, two drafts of one pass among them."""
    model, start, samples, count = build(2, vocabulary=3, layers=1), prompt(2, 3), 800, 4
    expected = samples * joint_distribution(model, start, count)
    generator = torch.Generator().manual_seed(0)
    observed, accepted = torch.zeros_like(expected), 0
    for _ in range(samples):
        result = generate_speculatively(
            model, start, count, sampling=Sampling(), generator=generator
        )
        place = 0
        for token in result.tokens_1N[0].tolist():
            place = place * 3 + token
        observed[place] += 1
        accepted += sum(result.accepted)
    assert 0.2 < accepted / (2 * samples) < 0.9
    # Cells that are too rare for the approximation are pooled.
    rare = expected < 5
    expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
    observed = torch.cat((observed[~rare], observed[rare].sum()[None]))
    statistic = ((observed - expected).square() / expected).sum()
    freedom = torch.tensor(len(expected) - 1.0, dtype=torch.float64)
    assert torch.special.gammaincc(freedom / 2, statistic / 2) > 0.01


weights = st.lists(st.sampled_from([0.0, 1e-3, 0.1, 0.5, 1.0, 2.0]), min_size=5, max_size=5)
shares = weights.filter(any).map(lambda w: torch.tensor(w, dtype=torch.float64) / sum(w))


@given(p=shares, q=shares)
def test_accepting_and_redrawing_gives_the_main_models_distribution(p, q):
    accepted = q * acceptance(p, q)
    rejected = 1 - accepted.sum()
    torch.testing.assert_close(accepted + rejected * residual(p, q), p, rtol=1e-12, atol=1e-15)
    # The rate of acceptance is one minus the total variation (arXiv 2211.17192).
    torch.testing.assert_close(rejected, (p - q).abs().sum() / 2, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(residual(p, q).sum().item(), 1.0, rtol=1e-12, atol=0)


@pytest.mark.parametrize("depth", [1, 2])
def test_generation_stops_after_the_end_token(depth):
    model = build(depth)
    plain = generate(model, prompt(), 20)[0].tolist()
    for end_token in range(4):
        tokens = generate_speculatively(model, prompt(), 20, end_token=end_token).tokens_1N[0]
        end = plain.index(end_token) + 1 if end_token in plain else 20
        assert tokens.tolist() == plain[:end]


@pytest.mark.parametrize(
    ("depth", "start", "message"),
    [
        (None, prompt(), "prediction: found none, expected a model with multi-token prediction"),
        (1, prompt().expand(2, -1), "prompts: found 2, expected one at a time"),
    ],
)
def test_what_cannot_be_decoded_speculatively_is_refused(depth, start, message):
    with pytest.raises(ValueError, match=message):
        generate_speculatively(build(depth), start, 3)
