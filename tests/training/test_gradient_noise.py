from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from harness.training.gradient_noise import add_gradient_outliers

SPEC = {"fraction": 0.01, "scale": 20.0, "distribution": "cauchy"}
SHAPES = [(300, 400), (500,), (0, 3), (7, 5, 3, 3)]
REFERENCES = {"normal": stats.norm, "laplace": stats.laplace, "cauchy": stats.cauchy}


def parameters(shapes: Sequence = SHAPES, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
    return made


def added(spec: dict | None, seed: int = 1, step: int = 2, factor: float = 1.0) -> list[np.ndarray]:
    """Return what is added to float64 gradients, so that a subtraction finds it again."""
    made = parameters(dtype=torch.float64)
    for parameter in made:
        parameter.grad *= factor
    before = [parameter.grad.clone() for parameter in made]
    add_gradient_outliers(made, spec, seed, step)
    return [(p.grad - old).numpy() for p, old in zip(made, before, strict=True)]


@pytest.mark.parametrize("distribution", REFERENCES)
def test_outliers_follow_the_distribution_and_hit_the_fraction(distribution):
    matrix = parameters([(1000, 1000)], torch.float64)
    before = matrix[0].grad.clone()
    add_gradient_outliers(matrix, SPEC | {"distribution": distribution}, seed=1, step=2)
    noise = (matrix[0].grad - before).numpy().ravel()
    [hit] = noise.nonzero()
    # Four standard deviations of a binomial count with mean 10,000.
    assert abs(len(hit) - 10_000) < 400
    scale = SPEC["scale"] * before.square().mean().sqrt().item()
    assert stats.kstest(noise[hit] / scale, REFERENCES[distribution].cdf).pvalue > 0.01
    assert stats.kstest(hit / noise.size, stats.uniform.cdf).pvalue > 0.01


def test_every_entry_is_hit_equally_often():
    counts = np.zeros(20)
    for step in range(4000):
        [vector] = parameters([(20,)])
        before = vector.grad.clone()
        add_gradient_outliers([vector], SPEC | {"fraction": 0.3}, seed=0, step=step)
        counts += (vector.grad != before).numpy()
    # Four standard deviations of a binomial count with mean 1,200.
    assert np.abs(counts - 1200).max() < 116


def test_outliers_grow_with_the_gradient():
    for one, other in zip(added(SPEC), added(SPEC, factor=1000), strict=True):
        np.testing.assert_allclose(other, 1000 * one, rtol=1e-5, atol=1e-9)


def test_equal_seed_and_step_give_equal_outliers_and_nothing_else_matters():
    first = added(SPEC)
    torch.rand(3)
    assert all(map(np.array_equal, first, added(SPEC)))
    for seed, step in ((1, 3), (2, 2), (2, 1)):
        assert not np.array_equal(first[0], added(SPEC, seed, step)[0])


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    added(SPEC)
    assert torch.equal(torch.get_rng_state(), state)


def test_missing_gradients_are_skipped():
    some = parameters()
    some[1].grad = None
    add_gradient_outliers(some, SPEC, seed=1, step=2)
    assert some[1].grad is None
    add_gradient_outliers([some[1]], SPEC, seed=1, step=2)


def test_no_outliers_leave_every_bit():
    made, untouched = parameters(), parameters()
    add_gradient_outliers(made, None, seed=1, step=2)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(made, untouched, strict=True))


def test_gradients_keep_type_and_shape():
    turned = nn.Parameter(torch.zeros(40, 30, dtype=torch.bfloat16))
    turned.grad = torch.ones(30, 40, dtype=torch.bfloat16).T
    add_gradient_outliers([turned], SPEC, seed=1, step=2)
    assert turned.grad.dtype == torch.bfloat16
    assert turned.grad.shape == (40, 30)
    assert 0 < (turned.grad != 1).sum() < 100
