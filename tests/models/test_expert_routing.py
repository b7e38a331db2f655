"""Choice of experts against `transformers`, losses and capacity against written-out loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV2Config, DeepseekV3Config, MixtralConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from harness.config.decoder_schema import MixtureOfExperts
from harness.models.routing import balance_loss, route, within_capacity

EXPERTS, CHOSEN, WIDTH = 12, 3, 16


def mixture(**options) -> MixtureOfExperts:
    base = {"moe_intermediate_size": 8, "n_routed_experts": EXPERTS, "num_experts_per_tok": CHOSEN}
    return MixtureOfExperts.model_validate(base | options)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_options(**options):
    return {"hidden_size": WIDTH, "n_routed_experts": EXPERTS, "num_local_experts": EXPERTS,
            "num_experts_per_tok": CHOSEN, "num_attention_heads": 4, **options}  # fmt: skip


def check(router, moe, bias=None):
    """Compare a router of `transformers` with ours for the same weights and tokens."""
    router.weight.data = drawn(EXPERTS, WIDTH)
    tokens = drawn(200, WIDTH, seed=1)
    logits, weights, experts = router(tokens)
    routing = route(logits, torch.zeros(EXPERTS) if bias is None else bias, moe)
    ours, theirs = routing.experts_NK.argsort(-1), experts.argsort(-1)
    assert routing.experts_NK.gather(1, ours).equal(experts.gather(1, theirs))
    torch.testing.assert_close(
        routing.weights_NK.gather(1, ours), weights.gather(1, theirs), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("groups", "limit"), [(1, 1), (4, 1), (4, 2), (3, 2), (4, 4)])
def test_choice_and_weights_equal_deepseek_v3(groups, limit, normalised, biased):
    options = {"n_group": groups, "topk_group": limit, "norm_topk_prob": normalised,
               "routed_scaling_factor": 2.5}  # fmt: skip
    router = DeepseekV3TopkRouter(DeepseekV3Config(**reference_options(**options)))
    if biased:
        router.e_score_correction_bias = 0.5 * drawn(EXPERTS, seed=2)
    check(router, mixture(**options), router.e_score_correction_bias)


@pytest.mark.parametrize(("groups", "limit"), [(1, 1), (4, 1), (4, 2), (3, 2)])
def test_choice_and_weights_equal_deepseek_v2(groups, limit):
    options = {"n_group": groups, "topk_group": limit, "routed_scaling_factor": 16.0}
    method = "greedy" if groups == 1 else "group_limited_greedy"
    router = DeepseekV2TopkRouter(
        DeepseekV2Config(**reference_options(topk_method=method, **options))
    )
    check(router, mixture(scoring_func="softmax", group_score="max", norm_topk_prob=False,
                          **options))  # fmt: skip


def test_choice_and_weights_equal_mixtral():
    router = MixtralTopKRouter(MixtralConfig(**reference_options()))
    check(router, mixture(scoring_func="softmax"))


@given(bias=st.lists(st.floats(-3, 3), min_size=EXPERTS, max_size=EXPERTS), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_bias_changes_the_choice_but_not_the_weights_of_what_is_chosen(bias, seed):
    logits = drawn(20, EXPERTS, seed=seed)
    routing = route(logits, torch.tensor(bias), mixture())
    chosen = logits.sigmoid().gather(1, routing.experts_NK)
    torch.testing.assert_close(routing.weights_NK, chosen / chosen.sum(1, keepdim=True))
    biased = logits.sigmoid() + torch.tensor(bias)
    least = biased.gather(1, routing.experts_NK).min(1).values
    others = biased.scatter(1, routing.experts_NK, -math.inf)
    assert (others.max(1).values <= least).all()


@given(groups=st.sampled_from([2, 3, 4, 6]), data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_token_is_sent_to_no_more_groups_than_allowed(groups, data):
    size = EXPERTS // groups
    limit = data.draw(st.integers(math.ceil(CHOSEN / size), groups))
    logits = drawn(30, EXPERTS, seed=data.draw(st.integers(0, 99)))
    routing = route(logits, torch.zeros(EXPERTS), mixture(n_group=groups, topk_group=limit))
    for experts in routing.experts_NK.tolist():
        assert len({expert // size for expert in experts}) <= limit
        assert len(set(experts)) == CHOSEN


def slow_imbalance(scores, counted, normalise):
    """sum_i f_i P_i of one sequence, written out as in DeepSeek-V3, eq. 17-20."""
    tokens, experts = len(scores), len(scores[0])
    total = 0.0
    for i in range(experts):
        f = experts / (CHOSEN * tokens) * sum(i in chosen for chosen in counted)
        p = sum(s[i] / (sum(s) if normalise else 1.0) for s in scores) / tokens
        total += f * p
    return total


def top_of(scores):
    return [sorted(range(len(s)), key=lambda i, s=s: -s[i])[:CHOSEN] for s in scores]


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize("kind", ["sequence_loss", "batch_loss", "auxiliary_loss"])
def test_balance_losses_equal_loops_over_their_equations(kind, scoring):
    # A bias and closed groups set the experts that are chosen apart from those of highest score.
    moe = mixture(balance={kind: 0.3}, scoring_func=scoring, n_group=3, topk_group=2)
    bias = 0.3 * drawn(EXPERTS, seed=2).double()
    routing = route(drawn(4 * 7, EXPERTS).double(), bias, moe)
    scores = routing.scores_NE.tolist()
    chosen = routing.experts_NK.tolist()
    assert [set(best) for best in top_of(scores)] != [set(experts) for experts in chosen]
    expected = {
        "sequence_loss": sum(
            slow_imbalance(part, top_of(part), True)
            for part in (scores[start : start + 7] for start in range(0, 28, 7))
        ) / 4,
        "batch_loss": slow_imbalance(scores, top_of(scores), True),
        "auxiliary_loss": slow_imbalance(scores, chosen, False),
    }  # fmt: skip
    assert balance_loss(routing, 4, moe).item() == pytest.approx(0.3 * expected[kind], rel=1e-12)


def test_balance_losses_add_up_and_are_zero_without_weights():
    routing = route(drawn(12, EXPERTS), torch.zeros(EXPERTS), mixture())
    each = [{"sequence_loss": 0.1}, {"batch_loss": 0.2}, {"auxiliary_loss": 0.4}]
    parts = [balance_loss(routing, 3, mixture(balance=balance)) for balance in each]
    every = mixture(balance=each[0] | each[1] | each[2])
    torch.testing.assert_close(balance_loss(routing, 3, every), sum(parts))
    assert balance_loss(routing, 3, mixture()).item() == 0


@given(experts=st.integers(2, 9), data=st.data())
@settings(max_examples=50, deadline=None)
def test_an_even_load_has_the_weight_as_its_loss_whatever_the_scores(experts, data):
    """f_i = 1 for every expert, and the normalised affinities sum to one."""
    chosen = data.draw(st.integers(1, experts))
    row = drawn(experts, seed=data.draw(st.integers(0, 99))).double()
    logits = torch.stack([row.roll(shift) for shift in range(experts)]).repeat(2, 1)
    moe = mixture(n_routed_experts=experts, num_experts_per_tok=chosen,
                  balance={"sequence_loss": 0.7})  # fmt: skip
    routing = route(logits, torch.zeros(experts), moe)
    torch.testing.assert_close(balance_loss(routing, 2, moe).item(), 0.7, rtol=1e-12, atol=0)


def test_the_sequence_loss_pulls_scores_of_overloaded_experts_down():
    logits = (drawn(64, EXPERTS) + 2 * torch.arange(EXPERTS).eq(0)).requires_grad_()
    moe = mixture(balance={"sequence_loss": 1.0})
    balance_loss(route(logits, torch.zeros(EXPERTS), moe), 4, moe).backward()
    gradient = logits.grad.sum(0)
    assert gradient[0] > 0 > gradient[1:].mean()


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.5])
def test_an_expert_over_capacity_drops_its_tokens_of_lowest_affinity(factor):
    moe = mixture(capacity_factor=factor)
    skew = torch.linspace(0, 2, EXPERTS)
    routing = route(drawn(40, EXPERTS) + skew, torch.zeros(EXPERTS), moe)
    kept = within_capacity(routing, moe)
    capacity = math.ceil(factor * CHOSEN * 40 / EXPERTS)
    for expert in range(EXPERTS):
        tokens = (routing.experts_NK == expert).any(1).nonzero().flatten().tolist()
        tokens.sort(key=lambda token: -routing.scores_NE[token, expert])
        assert (kept == expert).any(1).nonzero().flatten().tolist() == sorted(tokens[:capacity])
    # What is left of the choice is unchanged.
    assert (kept.eq(routing.experts_NK) | kept.eq(EXPERTS)).all()
    assert kept.eq(EXPERTS).any()


@given(seed=st.integers(0, 99), factor=st.floats(0.1, EXPERTS / CHOSEN))
@settings(max_examples=50, deadline=None)
def test_no_expert_gets_more_than_its_capacity_and_enough_room_drops_nothing(seed, factor):
    logits = drawn(24, EXPERTS, seed=seed) + drawn(EXPERTS, seed=seed + 1)
    routing = route(logits, torch.zeros(EXPERTS), mixture())
    kept = within_capacity(routing, mixture(capacity_factor=factor))
    loads = torch.bincount(kept.flatten(), minlength=EXPERTS + 1)[:EXPERTS]
    assert loads.max() <= math.ceil(factor * CHOSEN * 24 / EXPERTS)
    # An expert can get all tokens but not more.
    roomy = within_capacity(routing, mixture(capacity_factor=EXPERTS / CHOSEN))
    assert roomy.equal(routing.experts_NK)


def test_routing_leaves_gradients_only_through_the_weights():
    logits = drawn(5, EXPERTS).double().requires_grad_()
    moe = mixture(routed_scaling_factor=2.0)
    bias = drawn(EXPERTS, seed=3).double()
    assert torch.autograd.gradcheck(lambda x: route(x, bias, moe).weights_NK, logits)
