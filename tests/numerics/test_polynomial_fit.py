"""Fitted triples against optima computed elsewhere, matrices and low-rank inputs."""

from functools import cache

import numpy as np
import pytest
import torch

from harness.numerics.orthogonalization import (
    MUON,
    Triple,
    iterate_singular_values,
    relative_error,
)
from harness.numerics.polynomial_fit import OBJECTIVES, STABILITY_MARGIN, fit
from harness.numerics.singular_values import gaussian_singular_values
from harness.numerics.stability import stable_up_to

STABLE = 1 + STABILITY_MARGIN


@cache
def fitted(shape: tuple[int, int], objective: str = "mean_square", stable: bool = True) -> Triple:
    return fit([(1, gaussian_singular_values(*shape, seed=0))], 5, objective, stable)


def loss(triple: Triple, values: np.ndarray, objective: str) -> float:
    return OBJECTIVES[objective](iterate_singular_values(values, [triple] * 5))


# Triples and relative errors on one Gaussian matrix, computed elsewhere without constraints.
@pytest.mark.parametrize(
    ("shape", "triple", "error"),
    [
        ((2048, 3072), (2.909, -3.811, 1.861), 0.0485),
        ((2048, 4096), (2.774, -3.492, 1.700), 0.0319),
        ((4096, 4096), (3.374, -4.613, 2.056), 0.217),
        ((2048, 2048), (3.333, -4.260, 1.780), 0.187),
        ((2048, 8192), (2.603, -3.127, 1.569), 0.0125),
        ((2048, 16384), (2.553, -3.059, 1.588), 0.0044),
    ],
)
def test_the_fit_arrives_at_the_known_optimum(shape, triple, error):
    found = fitted(shape, stable=False)
    assert found == pytest.approx(triple, abs=0.01)
    values = gaussian_singular_values(*shape, seed=0)
    assert relative_error(values, [found] * 5) == pytest.approx(error, abs=4e-4)


def test_the_largest_error_has_its_known_optimum():
    found = fitted((2048, 3072), "minimax", stable=False)
    assert found == pytest.approx((3.060, -4.207, 2.080), abs=0.02)
    values = gaussian_singular_values(2048, 3072, seed=0)
    # At an optimum of the largest error the extremes above and below one are equally far away.
    after = iterate_singular_values(values, [found] * 5)
    assert after.max() - 1 == pytest.approx(1 - after.min(), rel=1e-3)


def test_objectives_are_norms_of_matrices():
    generator = np.random.default_rng(2)
    left, values, right = np.linalg.svd(generator.normal(size=(6, 9)), full_matrices=False)
    matrix = left @ np.diag(values) @ right
    found = {name: objective(values) for name, objective in OBJECTIVES.items()}
    assert found == pytest.approx(
        {
            "mean_square": np.linalg.norm(matrix - left @ right) ** 2 / 6,
            "minimax": np.linalg.norm(matrix - left @ right, ord=2),
            "gram": np.linalg.norm(matrix @ matrix.T - np.eye(6)) ** 2 / 6,
        }
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("shape", [(1, 5), (48, 48), (64, 192), (2048, 16384)])
def test_constrained_fits_are_stable_and_no_better_than_free_ones(shape, objective):
    values = gaussian_singular_values(*shape, seed=0)
    stable, free = fitted(shape, objective), fitted(shape, objective, stable=False)
    assert stable_up_to(stable) >= STABLE - 1e-12
    assert loss(free, values, objective) <= loss(stable, values, objective)
    assert loss(stable, values, objective) <= loss(MUON, values, objective)


@pytest.mark.parametrize("shape", [(2048, 2048), (2048, 3072), (2048, 4096), (128, 512)])
def test_the_constraint_costs_nothing_where_the_optimum_is_stable(shape):
    free = fitted(shape, stable=False)
    assert stable_up_to(free) > STABLE
    assert fitted(shape) == pytest.approx(free, abs=1e-3)


def newton_schulz(matrix: torch.Tensor, triple: Triple) -> torch.Tensor:
    a, b, c = triple
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def low_rank(rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, rank, generator=generator) @ torch.randn(rank, 64, generator=generator)


@pytest.mark.parametrize("shape", [(2048, 8192), (2048, 16384)])
def test_free_optima_blow_up_on_low_rank_matrices(shape):
    free, stable = fitted(shape, stable=False), fitted(shape)
    assert stable_up_to(free) == 0
    assert newton_schulz(low_rank(1, 0), free).norm() > 15
    assert newton_schulz(low_rank(1, 0), stable).norm() < stable_up_to(stable)


@pytest.mark.parametrize("objective", ["mean_square", "gram"])
@pytest.mark.parametrize("shape", [(2048, 2048), (2048, 16384), (32, 64)])
def test_stable_fits_hold_low_rank_matrices_in_bfloat16(shape, objective):
    stable = fitted(shape, objective)
    # All entries equal: every entry of the normalised matrix is rounded the same way.
    matrices = [torch.full((32, 64), 1 / 3), *(low_rank(rank, rank) for rank in range(1, 9))]
    for matrix in matrices:
        found = newton_schulz(matrix.bfloat16(), stable)
        assert torch.linalg.matrix_norm(found.float(), ord=2) < 1.1 * stable_up_to(stable)


def test_fits_are_deterministic():
    assert fitted((48, 48), "minimax") == fitted.__wrapped__((48, 48), "minimax")


def test_weights_count():
    one, other = gaussian_singular_values(64, 64, seed=0), gaussian_singular_values(64, 512, seed=0)
    assert fit([(1, one), (1, other)], 5) == pytest.approx(
        fit([(1, np.concatenate([one, other]))], 5), abs=1e-4
    )
    mixed = [fit([(weight, one), (1, other)], 5) for weight in (0.1, 1, 10)]
    errors = [relative_error(one, [triple] * 5) for triple in mixed]
    assert errors == sorted(errors, reverse=True)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ArithmeticError, match="no start gives finite values"):
        fit([(1, np.array([0.5, np.nan]))], 5)
