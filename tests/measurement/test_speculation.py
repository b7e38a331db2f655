"""Acceptance and speed-up on models whose modules are right always, or never."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.errors import UserError
from harness.measurement import speculation
from harness.measurement.optimizer_step import WARMUP_ROUNDS
from harness.measurement.speculation import (
    expected_speedup,
    expected_tokens,
    measure_speculation,
)
from harness.models import build_model

WIDTH, VOCABULARY = 8, 5


def build(depth: int, sign: float):
    """A bigram model, its modules too; with a negative sign they prefer the unlikeliest token.

    Blocks add nothing, and the projection passes on the embedding: h_i^k = norm(Emb(t_(i+k))).
    """
    spec = {"family": "decoder", "hidden_size": WIDTH, "num_hidden_layers": 2,
            "attention": {"kind": "gqa", "num_attention_heads": 2, "num_key_value_heads": 1},
            "feed_forward": {"kind": "swiglu", "intermediate_size": 12},
            "prediction": {"depth": depth}}  # fmt: skip
    torch.manual_seed(0)
    model = build_model(validate(ModelSpec, spec, "test"), vocab_size=VOCABULARY).double().eval()
    torch.nn.init.normal_(model.embedding.weight)
    torch.nn.init.normal_(model.head.weight)
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        for module in model.prediction:
            module.projection.weight.copy_(sign * torch.eye(WIDTH, 2 * WIDTH, dtype=torch.float64))
    return model


def prompts(count: int = 3, length: int = 4):
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))


def by_metric(records):
    return {(record["metric"], *record["labels"].values()): record["value"] for record in records}


@pytest.mark.parametrize("depth", [1, 2])
def test_modules_that_equal_the_main_model_are_always_accepted(depth):
    values = by_metric(measure_speculation(build(depth, 1.0), prompts(), 13, rounds=1))
    for mode, position in itertools.product(["greedy", "sampled"], range(1, depth + 1)):
        assert values["mtp/acceptance", mode, position] == 1
        # One token after the prompt, then depth + 1 of each pass: 1 + 12.
        assert values["mtp/tokens_per_forward", mode] == 13 / (1 + 12 / (depth + 1))
    overhead = values[("mtp/draft_overhead",)]
    assert overhead > 0
    assert values[("mtp/speedup_model",)] == pytest.approx((depth + 1) / (1 + overhead), rel=1e-12)


def test_modules_that_prefer_the_unlikeliest_token_are_never_accepted_greedily():
    values = by_metric(measure_speculation(build(1, -1.0), prompts(), 12, rounds=1))
    assert values["mtp/acceptance", "greedy", 1] == 0
    assert values["mtp/tokens_per_forward", "greedy"] == 1
    assert 0 < values["mtp/acceptance", "sampled", 1] < 1


def test_sampled_acceptance_is_one_minus_the_total_variation(monkeypatch):
    """The rate of acceptance of arXiv 2211.17192 for one context, here the only one there is."""
    monkeypatch.setattr(speculation, "timed", lambda work, device: 1.0)
    model = build(1, -1.0)
    with torch.no_grad():
        # All tokens look alike, and none is sure.
        model.head.weight.mul_(0.2)
        model.embedding.weight.copy_(model.embedding.weight[:1].expand(VOCABULARY, -1))
        logits = model(torch.zeros(1, 1, dtype=torch.long))[0, 0]
    expected = 1 - (logits.softmax(0) - (-logits).softmax(0)).abs().sum().item() / 2
    values = by_metric(measure_speculation(model, prompts(4), 60, rounds=1))
    # Each draft of the last 58 tokens brings 1 + expected of them.
    error = (expected * (1 - expected) / (4 * 58 / (1 + expected))) ** 0.5
    assert 0.1 < expected < 0.9
    assert abs(values["mtp/acceptance", "sampled", 1] - expected) < 3 * error


def test_speeds_are_medians_of_ratios_within_timed_rounds(monkeypatch):
    warmup = [[1.0, 9.0, 1.0, 9.0]] * WARMUP_ROUNDS
    # Main step, draft, plain generation, speculative generation.
    rounds = [[2.0, 0.5, 6.0, 4.0], [20.0, 6.0, 60.0, 30.0], [2.0, 0.2, 5.0, 4.0]]
    seconds = iter(itertools.chain(*warmup, *rounds))

    def fake(work, device):
        work()
        return next(seconds)

    monkeypatch.setattr(speculation, "timed", fake)
    values = by_metric(measure_speculation(build(1, 1.0), prompts(), 12, rounds=3))
    assert next(seconds, None) is None
    assert values[("mtp/draft_overhead",)] == 0.25
    assert values[("mtp/speedup",)] == 1.5
    assert values[("mtp/speedup_model",)] == 2 / 1.25


@pytest.mark.parametrize(
    ("acceptance", "overhead", "published"),
    [(0.8, 0.0, 1.80), (0.85, 0.0, 1.85), (0.9, 0.0, 1.90),
     (0.8, 0.044, 1.72), (0.85, 0.044, 1.77), (0.9, 0.044, 1.82)],
)  # fmt: skip
def test_speed_up_of_one_draft_is_one_plus_acceptance(acceptance, overhead, published):
    """The 1.8 of arXiv 2505.09343 at its 80 to 90 %, drafting free or at DeepSeek-V3's 4.4 %."""
    assert round(expected_speedup(acceptance, 1, overhead), 2) == published


@given(acceptance=st.floats(0, 0.999), depth=st.integers(1, 8))
def test_tokens_of_a_pass_equal_the_geometric_sum(acceptance, depth):
    closed_form = (1 - acceptance ** (depth + 1)) / (1 - acceptance)
    assert expected_tokens(acceptance, depth) == pytest.approx(closed_form, rel=1e-9)
    assert expected_tokens(1.0, depth) == depth + 1


def test_too_few_tokens_to_draft_are_refused():
    message = "new_tokens: found 3, expected at least 4 for 2 modules to draft"
    with pytest.raises(UserError, match=message):
        measure_speculation(build(2, 1.0), prompts(), 3, rounds=1)
