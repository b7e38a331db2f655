"""Our mixture of experts against `transformers` and against its own equations."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV2Config, DeepseekV3Config, MixtralConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from harness.config.decoder_schema import DecoderSpec
from harness.models import experts as experts_module
from harness.models.feed_forward import FeedForward
from harness.models.mixture import Mixture

HIDDEN, WIDTH, EXPERTS, CHOSEN = 16, 8, 8, 2
V2 = {"scoring_func": "softmax", "norm_topk_prob": False, "group_score": "max"}


def build(linear=None, **options) -> Mixture:
    moe = {"kind": "moe", "moe_intermediate_size": WIDTH, "n_routed_experts": EXPERTS,
           "num_experts_per_tok": CHOSEN, **options}  # fmt: skip
    heads = {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 4}
    torch.manual_seed(0)
    return Mixture(DecoderSpec(family="decoder", hidden_size=HIDDEN, num_hidden_layers=1,
                               attention=heads, feed_forward=moe, linear=linear,
                               initializer_range=0.3))  # fmt: skip


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def counts(mixture: Mixture) -> torch.Tensor:
    return mixture.load.tokens.clone()


def reference(block, config, ours, **options):
    """Return a block of `transformers` in float64 with the weights of ``ours``."""
    config = config(hidden_size=HIDDEN, num_attention_heads=4, n_routed_experts=EXPERTS,
                    num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN,
                    moe_intermediate_size=WIDTH, intermediate_size=WIDTH, **options)  # fmt: skip
    # Its other implementations have no float64.
    config._experts_implementation = "eager"
    theirs = block(config).double()
    pairs = {
        "gate.weight": ours.router.weight,
        "experts.gate_up_proj": torch.cat((ours.gate, ours.up), dim=1),
        "experts.down_proj": ours.down,
    }
    if "gate.e_score_correction_bias" in theirs.state_dict():
        pairs["gate.e_score_correction_bias"] = ours.routing_bias
    if ours.shared is not None:
        pairs |= {f"shared_experts.{name}_proj.weight": getattr(ours.shared, name).weight
                  for name in ("gate", "up", "down")}  # fmt: skip
    # Without shared experts theirs are a feed-forward of width 0.
    theirs.load_state_dict(theirs.state_dict() | pairs)
    return theirs


def check(ours, theirs):
    """Compare outputs and all gradients; the routers of `transformers` compute in float32."""
    inputs = [drawn(3, 11, HIDDEN).double().requires_grad_() for _ in range(2)]
    outputs = ours(inputs[0]), theirs(inputs[1])
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    for output in outputs:
        (output * drawn(3, 11, HIDDEN, seed=2)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    gate, up = gradients["experts.gate_up_proj"].chunk(2, dim=1)
    pairs = [
        (inputs[0].grad, inputs[1].grad),
        (ours.router.weight.grad, gradients["gate.weight"]),
        (ours.gate.grad, gate),
        (ours.up.grad, up),
        (ours.down.grad, gradients["experts.down_proj"]),
    ]
    if ours.shared is not None:
        pairs += [(getattr(ours.shared, name).weight.grad,
                   gradients[f"shared_experts.{name}_proj.weight"])
                  for name in ("gate", "up", "down")]  # fmt: skip
    for mine, expected in pairs:
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("groups", "limit"), [(1, 1), (4, 2)])
def test_outputs_and_gradients_equal_deepseek_v3(groups, limit, normalised, shared):
    options = {"n_group": groups, "topk_group": limit, "norm_topk_prob": normalised,
               "routed_scaling_factor": 2.5, "n_shared_experts": shared}  # fmt: skip
    ours = build(**options).double()
    ours.routing_bias += 0.2 * drawn(EXPERTS)
    check(ours, reference(DeepseekV3MoE, DeepseekV3Config, ours, **options))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize(("groups", "limit"), [(1, 1), (4, 2)])
def test_outputs_and_gradients_equal_deepseek_v2(groups, limit, shared):
    options = {"n_group": groups, "topk_group": limit, "routed_scaling_factor": 16.0,
               "n_shared_experts": shared}  # fmt: skip
    ours = build(**V2, **options).double()
    method = "greedy" if groups == 1 else "group_limited_greedy"
    check(ours, reference(DeepseekV2Moe, DeepseekV2Config, ours, topk_method=method, **options))


def test_outputs_and_gradients_equal_mixtral():
    ours = build(scoring_func="softmax").double()
    check(ours, reference(MixtralSparseMoeBlock, MixtralConfig, ours))


def test_parameters_have_the_names_and_shapes_that_optimizers_and_checkpoints_rely_on():
    state = {
        name: tuple(value.shape) for name, value in build(n_shared_experts=2).state_dict().items()
    }
    assert state == {
        "router.weight": (EXPERTS, HIDDEN),
        "routing_bias": (EXPERTS,),
        "gate": (EXPERTS, WIDTH, HIDDEN),
        "up": (EXPERTS, WIDTH, HIDDEN),
        "down": (EXPERTS, HIDDEN, WIDTH),
        "shared.gate.weight": (2 * WIDTH, HIDDEN),
        "shared.up.weight": (2 * WIDTH, HIDDEN),
        "shared.down.weight": (HIDDEN, 2 * WIDTH),
    }


def test_the_grouped_path_never_asks_the_device_for_values(monkeypatch):
    """Fake tensors have shapes but no values: asking for one raises."""
    monkeypatch.setattr(experts_module, "runs_grouped", lambda x, weights: True)
    options = {"n_group": 4, "topk_group": 2, "n_shared_experts": 1, "capacity_factor": 1.0,
               "balance": {"bias_update_rate": 0.1, "sequence_loss": 0.1}}  # fmt: skip
    with FakeTensorMode():
        mixture = build(**options)
        with torch.autocast("cpu", torch.bfloat16):
            output = mixture(torch.empty(2, 5, HIDDEN, requires_grad=True))
        (output.sum() + mixture.balance_loss).backward()
        mixture.after_step(0.0)
        assert mixture.gate.grad.shape == mixture.gate.shape
        with pytest.raises(DataDependentOutputException):
            mixture.statistics()


class Products(TorchDispatchMode):
    """Records the types of matrix products by their number of output columns."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten.mm.default:
            self.seen.append((arguments[1].shape[1], arguments[0].dtype))
        return function(*arguments, **(keywords or {}))


def test_under_autocast_experts_compute_in_bfloat16_and_the_gate_in_float32():
    mixture, x = build(n_shared_experts=1, n_routed_experts=5), drawn(2, 9, HIDDEN)
    exact = mixture(x)
    chosen = counts(mixture)
    with torch.autocast("cpu", torch.bfloat16), Products() as products:
        output = mixture(x)
    assert output.dtype == torch.bfloat16
    assert {dtype for columns, dtype in products.seen if columns == 5} == {torch.float32}
    assert {dtype for columns, dtype in products.seen if columns != 5} == {torch.bfloat16}
    assert counts(mixture).equal(2 * chosen)
    assert ((output - exact).norm() / exact.norm()).item() < 0.01
    output.sum().backward()
    assert mixture.gate.grad.dtype == torch.float32


def by_feed_forward(mixture, x_ND, experts_NK, weights_NK):
    """Return the sum of each expert as a ``FeedForward`` that sees all tokens."""
    output = torch.zeros_like(x_ND)
    for expert in range(EXPERTS):
        alone = FeedForward(HIDDEN, WIDTH, mixture.fp8).to(x_ND.dtype)
        alone.load_state_dict({f"{name}.weight": getattr(mixture, name)[expert].detach()
                               for name in ("gate", "up", "down")})  # fmt: skip
        factors = (weights_NK * (experts_NK == expert)).sum(1)
        output += factors.unsqueeze(1) * alone(x_ND)
    return output


def choice(mixture, x_ND):
    """Return the best experts of each token, their scores, and these normalised."""
    best = (x_ND @ mixture.router.weight.T).sigmoid().topk(CHOSEN)
    return best.indices, best.values, best.values / best.values.sum(1, keepdim=True)


def test_in_fp8_an_expert_is_the_feed_forward_in_fp8():
    mixture, x = build(linear={"scaling": "block", "block_size": 8}), drawn(2, 9, HIDDEN)
    output, x_ND = mixture(x), x.flatten(0, 1)
    experts_NK, _, weights_NK = choice(mixture, x_ND)
    expected = by_feed_forward(mixture, x_ND, experts_NK, weights_NK)
    torch.testing.assert_close(output.flatten(0, 1), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(output, build()(x), rtol=1e-3)


def flops(**options) -> int:
    mixture, x = build(**options), drawn(4, 16, HIDDEN).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        mixture(x).sum().backward()
    return counter.get_total_flops()


def test_work_grows_with_active_experts_not_with_all():
    # Six operations per weight and token: two forward, four backward.
    matrix, tokens = 6 * 3 * HIDDEN * WIDTH, 64
    for total in (EXPERTS, 2 * EXPERTS):
        router = 6 * HIDDEN * total * tokens
        shared = 2 * matrix * tokens
        assert flops(n_routed_experts=total) == router + CHOSEN * matrix * tokens
        assert (flops(n_routed_experts=total, n_shared_experts=2, num_experts_per_tok=4)
                == router + 4 * matrix * tokens + shared)  # fmt: skip


def test_dropped_assignments_are_not_computed():
    dropless = flops(n_routed_experts=2, num_experts_per_tok=2)
    # Each of the two experts takes half of its 64 tokens.
    router = 6 * HIDDEN * 2 * 64
    halved = flops(n_routed_experts=2, num_experts_per_tok=2, capacity_factor=0.5)
    assert halved - router == (dropless - router) / 2


@given(options=st.fixed_dictionaries({
    "n_routed_experts": st.sampled_from([4, 8]), "num_experts_per_tok": st.integers(1, 4),
    "scoring_func": st.sampled_from(["sigmoid", "softmax"]),
}), seed=st.integers(0, 99))  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_by_default_nothing_is_dropped(options, seed):
    mixture = build(**options)
    mixture(drawn(2, 7, HIDDEN, seed=seed))
    assert counts(mixture).sum() == options["num_experts_per_tok"] * 14
    assert mixture.load.dropped == 0


def test_over_capacity_a_token_keeps_what_its_other_experts_and_the_shared_ones_add():
    mixture = build(n_shared_experts=1, capacity_factor=0.5).double()
    x = drawn(2, 16, HIDDEN).double()
    output, x_ND = mixture(x).flatten(0, 1), x.flatten(0, 1)
    experts_NK, scores_NK, weights_NK = choice(mixture, x_ND)
    kept_NK = experts_NK.clone()
    for expert in range(EXPERTS):
        places = (experts_NK == expert).nonzero().tolist()
        places.sort(key=lambda place: -scores_NK[tuple(place)])
        # Half of the even share of 32 tokens x 2 experts over 8 experts.
        for place in places[4:]:
            kept_NK[tuple(place)] = EXPERTS
    expected = by_feed_forward(mixture, x_ND, kept_NK, weights_NK) + mixture.shared(x_ND)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    mixture.after_step(0.0)
    dropped = (kept_NK == EXPERTS).double().mean().item()
    assert mixture.statistics()["dropped_tokens"] == pytest.approx(dropped)
    assert dropped > 0


def test_evaluation_drops_nothing_counts_nothing_and_has_no_balance_loss():
    limited = build(capacity_factor=0.1, balance={"sequence_loss": 1.0}).eval()
    x = drawn(2, 9, HIDDEN)
    torch.testing.assert_close(limited(x), build()(x))
    assert limited.balance_loss == 0
    assert not counts(limited).any()
    limited.train()(x)
    assert limited.balance_loss > 0
    assert counts(limited).any()
    limited.eval()(x)
    assert limited.balance_loss == 0


def test_the_balance_loss_reaches_the_router_and_nothing_else():
    mixture = build(balance={"auxiliary_loss": 0.5}, n_shared_experts=1)
    x = drawn(2, 9, HIDDEN).requires_grad_()
    mixture(x)
    mixture.balance_loss.backward()
    assert mixture.router.weight.grad.any()
    assert x.grad.any()
    assert all(parameter.grad is None for name, parameter in mixture.named_parameters()
               if name != "router.weight")  # fmt: skip


def test_the_bias_moves_by_its_rate_against_the_load_of_the_step():
    mixture, rate = build(balance={"bias_update_rate": 0.25, "bias_update_until": 0.5}), 0.25
    x, expected = drawn(4, 8, HIDDEN), torch.zeros(EXPERTS)
    for step in range(4):
        scores = (x.flatten(0, 1) @ mixture.router.weight.T).sigmoid() + mixture.routing_bias
        load = torch.bincount(scores.topk(CHOSEN).indices.flatten(), minlength=EXPERTS)
        # The published rule: b_i += u * sign(mean load - load_i).
        if step < 2:
            expected += rate * torch.sign(load.float().mean() - load)
        mixture(x)
        mixture.after_step(step / 4)
        assert mixture.routing_bias.equal(expected)
    assert expected.any()


def test_micro_batches_move_the_bias_as_their_batch_does():
    options = {"balance": {"bias_update_rate": 0.1}}
    whole, halves = build(**options), build(**options)
    for step in range(3):
        x = drawn(4, 8, HIDDEN, seed=step)
        whole(x)
        for half in x.chunk(2):
            halves(half)
        whole.after_step(0.0)
        halves.after_step(0.0)
        assert whole.routing_bias.equal(halves.routing_bias)
    assert whole.routing_bias.any()
    assert whole.statistics() == halves.statistics()


def test_the_bias_evens_out_a_skewed_load():
    """What the auxiliary-loss-free method promises: the load without a loss (2408.15664)."""
    mixture = build(balance={"bias_update_rate": 0.01})
    mixture.router.weight.data[0] = 1.0
    x = drawn(8, 32, HIDDEN) + 0.3
    violations = []
    with torch.no_grad():
        for _ in range(100):
            mixture(x)
            mixture.after_step(0.0)
            violations.append(mixture.statistics()["max_violation"])
    assert violations[0] > 1
    assert violations[-1] < 0.1 * violations[0]


def test_statistics_are_means_over_the_steps_since_the_last_call():
    mixture, loads = build(n_shared_experts=1), []
    assert mixture.statistics() == {}
    for seed in range(3):
        mixture(drawn(1, 5, HIDDEN, seed=seed))
        loads.append(counts(mixture).double())
        mixture.after_step(0.0)
    expected = {
        "max_violation": sum(load.max() / load.mean() - 1 for load in loads) / 3,
        "load_entropy": sum(
            -sum(share * math.log(share) for share in (load / load.sum()).tolist() if share)
            for load in loads
        ) / math.log(EXPERTS) / 3,
        "dead_experts": sum((load == 0).double().mean() for load in loads) / 3,
    }  # fmt: skip
    assert expected["dead_experts"] > 0
    assert mixture.statistics() == pytest.approx({k: float(v) for k, v in expected.items()})
    assert mixture.statistics() == {}


def test_an_even_load_has_no_violation_and_an_entropy_of_one():
    for experts in (1, 4):
        mixture = build(n_routed_experts=experts, num_experts_per_tok=experts)
        mixture(drawn(2, 3, HIDDEN))
        mixture.after_step(0.0)
        assert mixture.statistics() == {"max_violation": 0, "load_entropy": 1, "dead_experts": 0}


def test_a_mixture_can_be_copied_between_forward_and_backward():
    mixture = build(balance={"sequence_loss": 1.0})
    mixture(drawn(2, 3, HIDDEN))
    twin = copy.deepcopy(mixture)
    assert twin.balance_loss == mixture.balance_loss
    mixture.balance_loss.backward()
    assert mixture.router.weight.grad.any()
