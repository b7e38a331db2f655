"""AdaNewton: polynomial coefficients fitted to the singular values of each matrix shape.

The objective and the data of the published fit are not known, so both are choices here: singular
values of i.i.d. Gaussian matrices, of momentum matrices recorded in a training run, or a mix of
them. Everything is computed in float64 on singular values, never on matrices.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from harness.config.base import Spec, validate
from harness.config.optimizer_schema import Recording
from harness.errors import UserError
from harness.files import write_json
from harness.numerics.orthogonalization import MUON, Triple, relative_error
from harness.numerics.polynomial_fit import ObjectiveName, WeightedSpectrum, fit
from harness.numerics.singular_values import gaussian_singular_values
from harness.numerics.stability import stable_up_to
from harness.plan.identity import digest

# (smaller side, larger side) of a matrix.
Shape = tuple[int, int]

# Complete list of the published triples (ROOT, released code). The first maps values near 0.559 to
# 1.2245, just over its repelling fixed point of 1.2235: five steps take them to 3.3, and further
# steps to infinity. The others are stable beyond one.
PUBLISHED: dict[Shape, Triple] = {
    (2048, 2048): (3.4916, -4.8224, 2.1095),
    (2048, 3072): (3.4509, -4.5790, 1.9325),
    (2048, 8192): (2.9794, -3.6674, 1.6207),
    (2048, 16384): (3.1943, -3.8221, 1.5322),
}
VERSION = 2
_WHERE = "config/optimizers.yaml: calibration"


class Calibration(Spec):
    """How coefficients are found for a matrix shape."""

    steps: PositiveInt = Field(5, description="Newton-Schulz steps")
    objective: ObjectiveName = Field(
        "mean_square",
        description="what is minimised over singular values p after all steps: mean (p - 1)^2, "
        "max |p - 1|, which says little where some are close to zero, or mean (p^2 - 1)^2",
    )
    data: Literal["gaussian", "recorded", "mixed"] = Field(
        "gaussian", description="whose singular values to fit"
    )
    real_to_random: tuple[PositiveInt, PositiveInt] = Field(
        (1, 3), description="weights of recorded and Gaussian matrices in mixed data"
    )
    recording: Recording | None = Field(
        None, description="the runs that recorded momentum matrices, for recorded and mixed"
    )
    seed: NonNegativeInt = Field(0, description="of the drawn singular values")
    published: bool = Field(True, description="take the published triple where there is one")
    stable: bool = Field(
        True,
        description="only fit triples that hold every singular value of a normalised matrix, of "
        "low rank too, over any number of steps",
    )

    @model_validator(mode="after")
    def _recording_goes_with_data(self) -> "Calibration":
        if (self.recording is None) != (self.data == "gaussian"):
            raise ValueError("recording is needed for data recorded and mixed, and only there")
        return self


@dataclass(frozen=True)
class Coefficients:
    """The triple of one shape and how well it orthogonalises matrices that it was not fitted to.

    Errors are relative Frobenius errors after all steps, infinite where an unstable triple
    overflows. Those on recorded matrices are means over every other one, which the fit leaves
    out; if there is only one recorded matrix, a fit to it is also judged on it.

    Attributes:
        triple: (a, b, c), the same at every step.
        source: ``published`` or ``calibrated``.
        stable_up_to: Below it no singular value ever leaves a bounded range above zero.
        error: On a Gaussian matrix.
        error_muon: The same with Muon's coefficients.
        error_recorded: On recorded matrices; None if none were given.
        error_recorded_muon: The same with Muon's coefficients.
    """

    triple: Triple
    source: Literal["published", "calibrated"]
    stable_up_to: float
    error: float
    error_muon: float
    error_recorded: float | None
    error_recorded_muon: float | None


def calibrate(shape: Shape, spec: Calibration, recorded: Sequence[np.ndarray] = ()) -> Coefficients:
    """Return the coefficients of one shape.

    Args:
        shape: Smaller and larger side.
        spec: How to find them.
        recorded: Singular values of each recorded matrix of that shape, Frobenius-normalised;
            needed if ``spec`` fits them, otherwise only judged.
    """
    published = spec.published and shape in PUBLISHED
    triple = PUBLISHED[shape] if published else _fitted(shape, spec, recorded)
    fresh = [gaussian_singular_values(*shape, spec.seed + 1)]
    held_out = recorded[1::2] or recorded
    return Coefficients(
        triple=triple,
        source="published" if published else "calibrated",
        stable_up_to=stable_up_to(triple),
        error=_mean_error(fresh, triple, spec.steps),
        error_muon=_mean_error(fresh, MUON, spec.steps),
        error_recorded=_mean_error(held_out, triple, spec.steps) if held_out else None,
        error_recorded_muon=_mean_error(held_out, MUON, spec.steps) if held_out else None,
    )


def resolve_coefficients(
    shapes: Iterable[Shape],
    spec: Mapping[str, Any],
    cache: Path,
    recorded: Mapping[Shape, Sequence[np.ndarray]] | None = None,
) -> dict[Shape, Coefficients]:
    """Return the coefficients of every shape, from ``cache`` where they were found before.

    Args:
        shapes: Smaller and larger sides.
        spec: The keys of ``Calibration``.
        cache: Folder of one JSON file per shape, calibration and recorded singular values.
        recorded: Singular values of recorded matrices by shape, each Frobenius-normalised.

    Raises:
        UserError: If ``spec`` is not a valid calibration, or fits recorded matrices and a shape
            has none, or a file of the cache is damaged.
    """
    calibration = validate(Calibration, dict(spec), _WHERE)
    recorded = recorded or {}
    found = {}
    for shape in shapes:
        spectra = recorded.get(shape, ())
        if calibration.data != "gaussian" and not spectra:
            raise UserError(_not_recorded(shape, calibration, recorded))
        key = {
            **calibration.model_dump(),
            "shape": shape,
            "recorded": _fingerprint(spectra),
            "version": VERSION,
        }
        path = cache / f"{shape[0]}x{shape[1]}-{digest(key)}.json"
        if not path.is_file():
            write_json(path, asdict(calibrate(shape, calibration, spectra)))
        found[shape] = _read(path)
    return found


def _read(path: Path) -> Coefficients:
    try:
        return TypeAdapter(Coefficients).validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path}: found no coefficients ({error.errors()[0]['msg']}), expected what was "
            "written there; delete it to have them fitted again"
        ) from None


def _fitted(shape: Shape, spec: Calibration, recorded: Sequence[np.ndarray]) -> Triple:
    real, random = {"gaussian": (0, 1), "recorded": (1, 0), "mixed": spec.real_to_random}[spec.data]
    spectra: list[WeightedSpectrum] = []
    if real:
        spectra.append((real, np.concatenate(recorded[::2])))
    if random:
        spectra.append((random, gaussian_singular_values(*shape, spec.seed)))
    return fit(spectra, spec.steps, spec.objective, spec.stable)


def _mean_error(spectra: Sequence[np.ndarray], triple: Triple, steps: int) -> float:
    with np.errstate(over="ignore"):
        return float(np.mean([relative_error(values, [triple] * steps) for values in spectra]))


def _fingerprint(spectra: Sequence[np.ndarray]) -> list[str]:
    return [hashlib.sha256(np.float64(values).tobytes()).hexdigest() for values in spectra]


def _not_recorded(
    shape: Shape, spec: Calibration, recorded: Mapping[Shape, Sequence[np.ndarray]]
) -> str:
    known = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(recorded)) or "nothing"
    assert spec.recording is not None
    return (
        f"{_WHERE}.recording: no completed run of '{spec.recording.optimizer}' in "
        f"'{spec.recording.experiment}' has matrices of {shape[0]} x {shape[1]} (recorded: {known})"
    )
