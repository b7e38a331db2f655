"""AdaNewton: polynomial coefficients fitted to the singular values of each matrix shape.

The objective and the data of the published fit are not known. Here the mean squared distance of
the singular values from one after all steps is minimised for i.i.d. Gaussian matrices, in float64.
Singular values are drawn exactly and without any large matrix from the bidiagonal model of
Gaussian matrices (Dumitriu and Edelman, arXiv math-ph/0206043).
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, TypeAdapter
from scipy.linalg import eigvalsh_tridiagonal
from scipy.optimize import minimize

from harness.config.base import Spec, validate
from harness.files import write_json
from harness.numerics.orthogonalization import MUON, Triple, relative_error
from harness.plan.identity import digest

# Complete list of the published triples (ROOT, released code).
PUBLISHED: dict[tuple[int, int], Triple] = {
    (2048, 2048): (3.4916, -4.8224, 2.1095),
    (2048, 3072): (3.4509, -4.5790, 1.9325),
    (2048, 8192): (2.9794, -3.6674, 1.6207),
    (2048, 16384): (3.1943, -3.8221, 1.5322),
}
VERSION = 1


class Calibration(Spec):
    """How coefficients are found for a matrix shape."""

    steps: PositiveInt = Field(5, description="Newton-Schulz steps")
    data: Literal["gaussian"] = Field("gaussian", description="whose singular values to fit")
    seed: int = Field(0, description="of the drawn singular values")
    published: bool = Field(True, description="take the published triple where there is one")


@dataclass(frozen=True)
class Coefficients:
    """The triple of one shape and how well it orthogonalises Gaussian matrices.

    Attributes:
        triple: (a, b, c), the same at every step.
        source: ``published`` or ``calibrated``.
        error: Relative Frobenius error after all steps.
        error_muon: The same with Muon's coefficients.
    """

    triple: Triple
    source: str
    error: float
    error_muon: float


def gaussian_singular_values(rows: int, columns: int, seed: int) -> np.ndarray:
    """Return the singular values of one Gaussian matrix divided by its Frobenius norm.

    Args:
        rows: Smaller side.
        columns: Larger side.
        seed: Of the draw.

    Returns:
        ``rows`` values in ascending order.
    """
    generator = np.random.default_rng((seed, rows, columns))
    diagonal = np.sqrt(generator.chisquare(columns - np.arange(rows)))
    below = np.sqrt(generator.chisquare(rows - 1 - np.arange(rows - 1)))
    squares = diagonal**2
    squares[1:] += below**2
    values = eigvalsh_tridiagonal(squares, diagonal[:-1] * below) if rows > 1 else squares
    return np.sqrt(np.maximum(values, 0) / squares.sum())


def fit(values: np.ndarray, steps: int) -> Triple:
    """Return the triple that brings ``values`` closest to one in ``steps`` equal steps.

    Raises:
        ArithmeticError: If the search does not converge.
    """
    best = minimize(
        lambda triple: relative_error(values, [tuple(triple)] * steps) ** 2,
        MUON,
        method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-12, "maxiter": 4000, "maxfev": 4000},
    )
    if not best.success:
        raise ArithmeticError(f"calibration does not converge: {best.message}")
    a, b, c = (float(number) for number in best.x)
    return a, b, c


def calibrate(shape: tuple[int, int], spec: Calibration) -> Coefficients:
    """Return the coefficients of one (smaller, larger) shape."""
    values = gaussian_singular_values(*shape, spec.seed)
    published = spec.published and shape in PUBLISHED
    triple = PUBLISHED[shape] if published else fit(values, spec.steps)
    # Judged on another matrix than the one that was fitted.
    fresh = gaussian_singular_values(*shape, spec.seed + 1)
    return Coefficients(
        triple=triple,
        source="published" if published else "calibrated",
        error=relative_error(fresh, [triple] * spec.steps),
        error_muon=relative_error(fresh, [MUON] * spec.steps),
    )


def resolve_coefficients(
    shapes: Iterable[tuple[int, int]], spec: Mapping[str, Any], cache: Path
) -> dict[tuple[int, int], Coefficients]:
    """Return the coefficients of every shape, from ``cache`` where they were found before.

    Raises:
        UserError: If ``spec`` is not a valid calibration.
    """
    calibration = validate(Calibration, dict(spec), "config/optimizers.yaml: calibration")
    found = {}
    for shape in shapes:
        key = {**calibration.model_dump(), "shape": shape, "version": VERSION}
        path = cache / f"{shape[0]}x{shape[1]}-{digest(key)}.json"
        if not path.is_file():
            write_json(path, asdict(calibrate(shape, calibration)))
        found[shape] = TypeAdapter(Coefficients).validate_json(path.read_text())
    return found
