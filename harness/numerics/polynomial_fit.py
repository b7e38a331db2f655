"""The triple that brings given singular values closest to one in a number of equal steps."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize

from harness.numerics.orthogonalization import MUON, QUINTIC, Triple, iterate_singular_values
from harness.numerics.stability import stable_triple

ObjectiveName = Literal["mean_square", "minimax", "gram"]
# Singular values and the weight of what they add to the objective.
WeightedSpectrum = tuple[float, np.ndarray]

# Of singular values after all steps: the squared relative Frobenius error, the spectral error, and
# ||X X^T - I||_F^2 / rows.
OBJECTIVES: dict[str, Callable[[np.ndarray], float]] = {
    "mean_square": lambda values: float(np.mean((values - 1) ** 2)),
    "minimax": lambda values: float(np.max(np.abs(values - 1))),
    "gram": lambda values: float(np.mean((values**2 - 1) ** 2)),
}

# How far stability must reach beyond one, the largest singular value of a normalised matrix (rank
# one): eight times bfloat16's unit roundoff of 2^-8, for the entries of the normalised matrix and
# the three products and two sums of a step.
STABILITY_MARGIN = 2.0**-5

# No start reaches the best optimum of every shape: square, wide and tiny matrices each miss some.
_FREE_STARTS = (MUON, QUINTIC, (3.0, -4.0, 1.9))
_STABLE_STARTS = ((0.1, 0.1, 0.1), (0.3, 0.5, 0.5), (0.7, 1.15, 1.0))
_MOST_RESTARTS = 50
# Larger than any error worth telling apart, and finite, so that a simplex can be compared with it.
_OVERFLOW = float(np.finfo(np.float64).max)


def fit(
    spectra: Sequence[WeightedSpectrum],
    steps: int,
    objective: ObjectiveName = "mean_square",
    stable: bool = True,
) -> Triple:
    """Return the triple that minimises the weighted mean of an objective over ``spectra``.

    Args:
        spectra: Weights and singular values of Frobenius-normalised matrices, each of any shape.
        steps: Number of steps with the same triple.
        objective: What is minimised.
        stable: Look among the triples of ``stable_triple`` only, which hold singular values up to
            1 + ``STABILITY_MARGIN``. Otherwise whatever suits ``spectra`` best.

    Raises:
        ArithmeticError: If the search does not converge.
    """

    def loss(triple: Triple) -> float:
        return _loss(triple, spectra, steps, objective)

    def constrained(point: np.ndarray) -> Triple:
        return stable_triple(point, STABILITY_MARGIN)

    best = constrained(_search(lambda point: loss(constrained(point)), _STABLE_STARTS))
    if stable:
        return best
    # Among the starts, so that lifting the constraint never makes the fit worse.
    return _triple(_search(lambda point: loss(_triple(point)), (*_FREE_STARTS, best)))


def _loss(
    triple: Triple, spectra: Sequence[WeightedSpectrum], steps: int, objective: ObjectiveName
) -> float:
    measure = OBJECTIVES[objective]
    with np.errstate(over="ignore", invalid="ignore"):
        losses = [
            weight * measure(iterate_singular_values(values, [triple] * steps))
            for weight, values in spectra
        ]
    total = sum(losses) / sum(weight for weight, _ in spectra)
    return total if np.isfinite(total) else _OVERFLOW


def _triple(point: np.ndarray) -> Triple:
    a, b, c = point.tolist()
    return a, b, c


def _search(loss: Callable[[np.ndarray], float], starts: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the best point found by Nelder-Mead from the best of ``starts``.

    The objectives are cheap, have three variables and, with minimax, kinks: a simplex that has
    shrunk onto a kink is renewed until that no longer helps.
    """
    best = min((_descend(loss, np.array(start)) for start in starts), key=lambda found: found.fun)
    if best.fun == _OVERFLOW:
        raise ArithmeticError("calibration does not converge: no start gives finite values")
    for _ in range(_MOST_RESTARTS):
        renewed = _descend(loss, best.x)
        if best.fun - renewed.fun <= 1e-4 * best.fun + 1e-9:
            return renewed.x
        best = renewed
    raise ArithmeticError(f"calibration does not converge: still improving at {best.fun:.3g}")


def _descend(loss: Callable[[np.ndarray], float], start: np.ndarray) -> Any:
    options = {"xatol": 1e-7, "fatol": 1e-12, "maxfev": 2000}
    return minimize(loss, start, method="Nelder-Mead", options=options)
