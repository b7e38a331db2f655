"""Spectra of Gaussian matrices against decompositions, moments and errors computed elsewhere."""

import numpy as np
import pytest

from harness.numerics import singular_values
from harness.numerics.orthogonalization import MUON, relative_error, schedule
from harness.numerics.singular_values import (
    LAW_ABOVE,
    gaussian_singular_values,
    marchenko_pastur_quantiles,
)


def middles(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


def law(rows: int, columns: int) -> np.ndarray:
    values = marchenko_pastur_quantiles(rows / columns, middles(rows))
    return values / np.linalg.norm(values)


def test_sampled_singular_values_are_those_of_gaussian_matrices():
    """Against a singular value decomposition: mean spectrum over 40 matrices of 30 x 50."""
    generator = np.random.default_rng(0)
    direct = np.mean(
        [
            np.sort(np.linalg.svd(generator.normal(size=(30, 50)), compute_uv=False))
            for _ in range(40)
        ],
        axis=0,
    )
    sampled = np.mean([gaussian_singular_values(30, 50, seed) for seed in range(40)], axis=0)
    np.testing.assert_allclose(sampled, direct / np.linalg.norm(direct), atol=0.004)


@pytest.mark.parametrize("shape", [(400, 400), (400, 600), (200, 2000)])
def test_the_law_follows_a_decomposed_matrix(shape):
    matrix = np.random.default_rng(1).normal(size=shape)
    direct = np.linalg.svd(matrix, compute_uv=False)[::-1] / np.sqrt(shape[1])
    quantiles = marchenko_pastur_quantiles(shape[0] / shape[1], middles(shape[0]))
    # One value moves by about its distance to the next, more at the edges.
    np.testing.assert_allclose(quantiles, direct, atol=0.04)
    assert np.mean(np.abs(quantiles - direct)) < 0.004


@pytest.mark.parametrize("shape", [(2048, 2048), (2048, 2100), (2048, 8192)])
def test_the_law_follows_a_sampled_spectrum(shape):
    sampled = gaussian_singular_values(*shape, seed=3)
    # Normalised values are about 1 / sqrt(rows).
    np.testing.assert_allclose(law(*shape), sampled, atol=0.02 / np.sqrt(shape[0]))
    for triples in ([MUON] * 5, schedule("polar_express", 5)):
        expected = relative_error(sampled, triples)
        assert relative_error(law(*shape), triples) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("ratio", [1e-3, 0.1, 0.5, 0.999, 1.0])
def test_the_law_has_the_known_moments_and_edges(ratio):
    values = marchenko_pastur_quantiles(ratio, middles(100_000))
    moments = [np.mean(values ** (2 * order)) for order in (1, 2, 3)]
    assert moments == pytest.approx([1, 1 + ratio, 1 + 3 * ratio + ratio**2], rel=1e-5)
    edges = marchenko_pastur_quantiles(ratio, np.array([0.0, 1.0]))
    assert edges == pytest.approx([1 - np.sqrt(ratio), 1 + np.sqrt(ratio)], abs=1e-6)


def test_the_smallest_values_of_square_matrices_keep_their_digits():
    """The density of a square matrix's values is 2 / pi at zero."""
    [tiny] = marchenko_pastur_quantiles(1.0, np.array([1e-9]))
    assert tiny == pytest.approx(1e-9 * np.pi / 2, rel=1e-4)


def test_large_spectra_have_the_errors_of_sampled_ones(monkeypatch):
    shape = (4096, 4096)
    large = gaussian_singular_values(*shape, seed=1)
    monkeypatch.setattr(singular_values, "LAW_ABOVE", shape[0])
    sampled = gaussian_singular_values(*shape, seed=1)
    # Computed elsewhere: Muon, Polar Express.
    for triples, elsewhere in (([MUON] * 5, 0.2526), (schedule("polar_express", 5), 0.153)):
        assert relative_error(large, triples) == pytest.approx(elsewhere, abs=1e-3)
        assert relative_error(large, triples) == pytest.approx(
            relative_error(sampled, triples), abs=1e-3
        )


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 7), (5, 5), (LAW_ABOVE, 4000), (LAW_ABOVE + 1, LAW_ABOVE + 1)]
)
def test_spectra_are_normalised_ascending_and_of_their_seed(shape):
    values = gaussian_singular_values(*shape, seed=4)
    assert values.shape == shape[:1]
    assert np.linalg.norm(values) == pytest.approx(1)
    assert np.all(np.diff(values) >= 0)
    assert np.array_equal(values, gaussian_singular_values(*shape, seed=4))
    if shape[0] > 1:
        assert not np.array_equal(values, gaussian_singular_values(*shape, seed=5))
