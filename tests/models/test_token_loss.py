"""The chunked loss of large vocabularies equals torch's on whole logits, and holds less."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.models import token_loss as module
from harness.models.token_loss import IGNORED, token_loss

BATCH, POSITIONS, WIDTH, VOCABULARY = 2, 9, 6, 50


@pytest.fixture
def chunked(monkeypatch):
    """Take the vocabulary for a large one, five positions at a time."""
    monkeypatch.setattr(module, "LARGE_VOCABULARY", VOCABULARY)
    monkeypatch.setattr(module, "CHUNK_LOGITS", 5 * VOCABULARY)


def inputs(seed: int = 0, dtype: torch.dtype = torch.float64, ignored: float = 0.3):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(BATCH, POSITIONS, WIDTH, generator=generator, dtype=dtype)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.normal_(generator=generator)
    targets = torch.randint(VOCABULARY, (BATCH, POSITIONS), generator=generator)
    targets[torch.rand(BATCH, POSITIONS, generator=generator) < ignored] = IGNORED
    return features.requires_grad_(), head, targets


def whole(features, head, targets, reduction="mean"):
    """Return torch's loss of all logits."""
    return F.cross_entropy(
        F.linear(features, head.weight).flatten(0, 1), targets.flatten(), reduction=reduction
    )


def gradients(loss, features, head, factor=1.0):
    return torch.autograd.grad(factor * loss, (features, head.weight))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.usefixtures("chunked")
def test_value_and_gradients_equal_those_of_whole_logits(reduction):
    @given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5]), st.floats(-3, 3))
    def law(seed, ignored, factor):
        features, head, targets = inputs(seed, ignored=ignored)
        if (targets == IGNORED).all():
            targets[0, 0] = 0
        loss = token_loss(features, head, targets, reduction)
        expected = whole(features, head, targets, reduction)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        pairs = zip(gradients(loss, features, head, factor),
                    gradients(expected, features, head, factor), strict=True)  # fmt: skip
        for found, wanted in pairs:
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)

    law()


@pytest.mark.usefixtures("chunked")
def test_gradients_equal_finite_differences():
    features, head, targets = inputs()

    def loss(x, weight):
        layer = nn.Linear(WIDTH, VOCABULARY, bias=False)
        del layer.weight
        layer.weight = weight
        return token_loss(x, layer, targets)

    assert torch.autograd.gradcheck(loss, (features, head.weight.detach().requires_grad_()))


@pytest.mark.usefixtures("chunked")
def test_impossible_tokens_have_finite_losses():
    """A probability that underflows still has a logarithm."""
    features, head, targets = inputs(dtype=torch.float32, ignored=0)
    with torch.no_grad():
        head.weight.mul_(100)
    loss = token_loss(features, head, targets)
    torch.testing.assert_close(loss, whole(features, head, targets), rtol=1e-6, atol=0)
    assert loss > 104  # exp(-104) is zero in float32


@pytest.mark.usefixtures("chunked")
def test_under_autocast_it_is_as_close_to_float64_as_whole_logits():
    features, head, targets = inputs(dtype=torch.float32)
    exact = torch.autograd.grad(
        F.cross_entropy(
            F.linear(features.double(), head.weight.double()).flatten(0, 1), targets.flatten()
        ),
        (features, head.weight),
    )

    def errors(function) -> list[float]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = function(features, head, targets)
        found = gradients(loss.float(), features, head)
        assert all(gradient.dtype == torch.float32 for gradient in found)
        return [float((g - e).norm() / e.norm()) for g, e in zip(found, exact, strict=True)]

    for chunked, unchunked in zip(errors(token_loss), errors(whole), strict=True):
        assert chunked < 1.5 * unchunked
        assert chunked < 2**-7


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return result


def largest_and_saved(features, head, targets) -> tuple[int, int]:
    saved = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with Largest() as largest, hooks:
        token_loss(features, head, targets).backward()
    return largest.elements, sum(saved)


def test_no_tensor_is_larger_than_a_chunk_of_logits_or_the_weight(monkeypatch):
    features, head, targets = inputs()
    logits = BATCH * POSITIONS * VOCABULARY
    assert largest_and_saved(features, head, targets)[0] == logits
    monkeypatch.setattr(module, "LARGE_VOCABULARY", VOCABULARY)
    monkeypatch.setattr(module, "CHUNK_LOGITS", 5 * VOCABULARY)
    largest, saved = largest_and_saved(features, head, targets)
    assert largest == head.weight.numel() == WIDTH * VOCABULARY
    # Their own gradients, and the count of the mean.
    assert saved <= features.numel() + head.weight.numel() + 2


@pytest.mark.usefixtures("chunked")
def test_without_gradients_nothing_is_computed_for_them():
    features, head, targets = inputs()
    with torch.no_grad(), Largest() as largest:
        loss = token_loss(features, head, targets)
    torch.testing.assert_close(loss, whole(features, head, targets).detach())
    assert largest.elements == head.weight.numel()
    assert not loss.requires_grad


def test_small_vocabularies_are_taken_whole_to_the_last_bit():
    features, head, targets = inputs(dtype=torch.float32)
    assert torch.equal(token_loss(features, head, targets), whole(features, head, targets))
