"""Computing with the chosen experts: by expert against token by token, and path against path."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.models import experts as experts_module
from harness.models.experts import (
    Weights,
    apply_experts,
    dispatch,
    fill_up,
    filled,
    segmented,
)

HIDDEN, WIDTH, EXPERTS, CHOSEN = 16, 8, 8, 2


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def routed_by_loop(x, experts_NK, weights_NK, weights):
    """Token by token, in float64; expert E adds nothing."""
    output = torch.zeros_like(x, dtype=torch.float64)
    for token, (chosen, factors) in enumerate(zip(experts_NK.tolist(), weights_NK, strict=True)):
        for expert, factor in zip(chosen, factors, strict=True):
            if expert < len(weights.gate_EFD):
                gate, up, down = (weight[expert].double() for weight in weights)
                hidden = F.silu(gate @ x[token].double()) * (up @ x[token].double())
                output[token] += factor.double() * (down @ hidden)
    return output


def case(dtype, *, drop=False, seed=0):
    """Tokens, choice and experts, of which the second and the last got no token."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, HIDDEN, generator=generator).to(dtype).requires_grad_()
    open_experts = torch.tensor([0, 2, 3, 4, 5, 6])
    experts = open_experts[torch.rand(20, 6, generator=generator).topk(CHOSEN).indices]
    if drop:
        experts = experts.masked_fill(torch.rand(20, CHOSEN, generator=generator) < 0.3, EXPERTS)
    factors = torch.rand(20, CHOSEN, generator=generator).to(
        torch.promote_types(dtype, torch.float32)
    ).requires_grad_()  # fmt: skip
    shapes = ((EXPERTS, WIDTH, HIDDEN), (EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH))
    weights = Weights(*(
        (0.3 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
        for shape in shapes
    ))  # fmt: skip
    return x, experts, factors, weights


def run(x, experts, factors, weights):
    """Return the output and all gradients."""
    output = apply_experts(x, experts, factors, weights, None)
    gradients = torch.autograd.grad(
        (output * drawn(*output.shape).to(output.dtype)).sum(), (x, factors, *weights)
    )
    return output, *gradients


@pytest.mark.parametrize("drop", [False, True])
def test_computing_by_expert_equals_computing_by_token(drop):
    x, experts, factors, weights = case(torch.float64, drop=drop)
    expected = routed_by_loop(x, experts, factors, weights)
    gradients = torch.autograd.grad((expected * drawn(20, HIDDEN)).sum(), (x, factors, *weights))
    for mine, theirs in zip(run(x, experts, factors, weights), (expected, *gradients), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_grouped_products_equal_one_expert_after_the_other(dtype, tolerance, drop, monkeypatch):
    inputs = case(dtype, drop=drop)
    expected = run(*inputs)
    monkeypatch.setattr(experts_module, "runs_grouped", lambda x, weights: True)
    product = F.grouped_mm

    def owned(rows, matrices, *, offs):
        # What lies beyond the last group is uninitialised.
        assert offs[-1] == len(rows)
        return product(rows, matrices, offs=offs)

    monkeypatch.setattr(F, "grouped_mm", owned)
    results = run(*inputs)
    for mine, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    # Experts without tokens, the last of which may compute what was dropped.
    for gradient in results[3:]:
        assert not gradient[[1, EXPERTS - 1]].any()


@pytest.mark.parametrize("fill", [CHOSEN, 20])
def test_filling_up_the_rows_of_all_experts_changes_nothing(fill, monkeypatch):
    x, experts, factors, weights = case(torch.float64)
    expected = routed_by_loop(x, experts, factors, weights)
    gradients = torch.autograd.grad((expected * drawn(20, HIDDEN)).sum(), (x, factors, *weights))
    largest = int(experts.flatten().bincount(minlength=EXPERTS).max())
    used = []
    batched = experts_module.batched

    def counted(rows, *others):
        used.append(len(rows))
        return batched(rows, *others)

    monkeypatch.setattr(experts_module, "batched", counted)
    monkeypatch.setattr(experts_module, "fill_up", lambda ends, count: max(fill, largest))
    for mine, theirs in zip(run(x, experts, factors, weights), (expected, *gradients), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert used == [EXPERTS * max(fill, largest)]


def test_rows_are_filled_up_only_where_that_pays(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert fill_up([3, 6, 8], 8) == 3
    assert fill_up([4, 6, 8], 8) is None
    # A dropped assignment has no row of its own.
    assert fill_up([3, 6, 8], 9) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert fill_up([3, 6, 8], 8) is None


def test_grouped_products_are_left_to_hopper_in_bfloat16(monkeypatch):
    x, _, _, weights = case(torch.bfloat16)
    assert not experts_module.runs_grouped(x, weights)

    class OnGpu:
        device, dtype, itemsize = torch.device("cuda"), torch.bfloat16, 2

    def runs(capability, x=OnGpu, width=WIDTH):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        narrow = weights.gate_EFD[:, :width]
        return experts_module.runs_grouped(x, Weights(narrow, narrow, weights.down_EDF))

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert runs((9, 0))
    assert not runs((8, 0))
    assert not runs((10, 0))
    # Rows of 12 bytes cannot be loaded at once.
    assert not runs((9, 0), width=6)
    assert not runs((9, 0), type("Wide", (OnGpu,), {"dtype": torch.float32, "itemsize": 4}))


@given(seed=st.integers(0, 99), tokens=st.integers(1, 9), experts=st.integers(CHOSEN, 7))
@settings(max_examples=40, deadline=None)
def test_dispatch_orders_rows_by_expert_and_finds_them_again(seed, tokens, experts):
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed))
    experts_NK = scores.topk(CHOSEN).indices
    plan = dispatch(experts_NK, experts)
    assert plan.order_R[plan.rows_NK.flatten()].tolist() == list(range(CHOSEN * tokens))
    assert (experts_NK.flatten()[plan.order_R].diff() >= 0).all()
    assert plan.ends_E.tolist() == [int((experts_NK <= e).sum()) for e in range(experts)]
    rows = tokens + 1
    full = filled(plan, rows)
    assert full.order_R[full.rows_NK.flatten()].tolist() == list(range(CHOSEN * tokens))
    assert (full.rows_NK // rows == experts_NK).all()
    assert (full.order_R == CHOSEN * tokens).sum() == experts * rows - CHOSEN * tokens


def test_gradients_of_the_experts_equal_finite_differences():
    x, experts, factors, weights = case(torch.float64, drop=True)
    leaves = [tensor.detach().requires_grad_() for tensor in (x[:4], factors[:4], *weights)]

    def output(x, factors, *matrices):
        return apply_experts(x, experts[:4], factors, Weights(*matrices), None)

    assert torch.autograd.gradcheck(output, leaves, fast_mode=True)


def test_experts_without_tokens_cost_nothing(monkeypatch):
    x, experts, _, weights = case(torch.float64)
    plan, products = dispatch(experts, EXPERTS), []
    project = experts_module.project

    def counted(*operands):
        products.append(operands)
        return project(*operands)

    monkeypatch.setattr(experts_module, "project", counted)
    segmented(x[plan.tokens_R], weights, plan.ends_E.tolist(), None)
    assert len(products) == 3 * len(experts.unique()) == 3 * 6
