"""How well fixed, published and fitted coefficients orthogonalise Gaussian matrices, as records."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Annotated, Any, get_args

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from harness.config.base import validate
from harness.errors import UserError, closest
from harness.numerics.orthogonalization import SCHEDULES, Triple, relative_error, schedule
from harness.numerics.polynomial_fit import ObjectiveName, fit
from harness.numerics.singular_values import gaussian_singular_values
from harness.numerics.stability import stable_up_to
from harness.optimizers.calibration import PUBLISHED, Shape
from harness.records.record import record

_Seeds = Annotated[list[NonNegativeInt], Field(min_length=1)]


def calibration_evidence(
    shapes: Sequence[Sequence[int]], objectives: Sequence[str], steps: int, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Return errors on Gaussian matrices, and the coefficients that made them.

    Fits see one matrix, drawn with the smallest seed that is not in ``seeds``. For each objective
    there is one fit that holds singular values up to one over any number of steps and one without
    that constraint.

    Args:
        shapes: Pairs of smaller and larger side.
        objectives: What the fits minimise: mean_square, minimax or gram.
        steps: Newton-Schulz steps.
        seeds: Of the matrices on which coefficients are judged.

    Returns:
        ``orthogonalization/error``, the relative Frobenius error, by shape, ``coefficients`` and
        seed; ``orthogonalization/a``, ``b``, ``c`` and ``stable_up_to`` by shape and
        ``coefficients`` where all steps share one triple.

    Raises:
        UserError: If an argument is not as described.
    """
    checked = _checked_shapes(shapes)
    names = _checked_objectives(objectives)
    validate(PositiveInt, steps, "calibration_evidence: steps")
    validate(_Seeds, seeds, "calibration_evidence: seeds")
    records: list[dict[str, Any]] = []
    for shape in checked:
        spectra = {seed: gaussian_singular_values(*shape, seed) for seed in dict.fromkeys(seeds)}
        unseen = next(seed for seed in count() if seed not in spectra)
        for name, triples in _candidates(shape, names, steps, unseen):
            labels = {"rows": shape[0], "columns": shape[1], "coefficients": name}
            records.extend(_errors(spectra, triples, labels))
            if len(set(triples)) == 1:
                records.extend(_coefficients(triples[0], labels))
    return records


def _candidates(
    shape: Shape, objectives: Sequence[ObjectiveName], steps: int, seed: int
) -> Iterator[tuple[str, Sequence[Triple]]]:
    """Yield the name and the triple of every step of all coefficients for ``shape``."""
    for name in SCHEDULES:
        yield name, schedule(name, steps)
    if shape in PUBLISHED:
        yield "published", [PUBLISHED[shape]] * steps
    spectra = [(1.0, gaussian_singular_values(*shape, seed))]
    for prefix, stable in (("fitted", True), ("unconstrained", False)):
        for objective in objectives:
            yield f"{prefix}_{objective}", [fit(spectra, steps, objective, stable)] * steps


def _errors(
    spectra: dict[int, np.ndarray], triples: Sequence[Triple], labels: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    for seed, values in spectra.items():
        with np.errstate(over="ignore"):
            error = relative_error(values, triples)
        yield _record("error", error, labels) | {"seed": seed}


def _coefficients(triple: Triple, labels: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in zip("abc", triple, strict=True):
        yield _record(name, value, labels)
    yield _record("stable_up_to", stable_up_to(triple), labels)


def _record(name: str, value: float, labels: dict[str, Any]) -> dict[str, Any]:
    return record(f"orthogonalization/{name}", value, "1", **labels)


def _checked_shapes(shapes: Sequence[Sequence[int]]) -> list[Shape]:
    pairs = validate(
        Annotated[list[Any], Field(min_length=1)], shapes, "calibration_evidence: shapes"
    )
    return list(dict.fromkeys(_checked_shape(pair) for pair in pairs))


def _checked_shape(pair: Any) -> Shape:
    match pair:
        case [int(rows), int(columns)] if 0 < rows <= columns:
            return rows, columns
    raise UserError(
        f"calibration_evidence: shapes: found {pair!r}, "
        "expected [rows, columns] with 1 <= rows <= columns"
    )


def _checked_objectives(objectives: Sequence[str]) -> list[ObjectiveName]:
    where = "calibration_evidence: objectives"
    valid = get_args(ObjectiveName)
    for name in validate(list[str], objectives, where):
        if name not in valid:
            raise UserError(f"{where}: found '{name}'{closest(name, valid)}")
    distinct: list[ObjectiveName] = validate(list[ObjectiveName], objectives, where)
    return list(dict.fromkeys(distinct))
