"""The jobs that find AdaNewton coefficients for every matrix shape of the scale's models."""

from collections.abc import Mapping
from typing import Any

from harness.config.base import validate
from harness.config.optimizer_schema import Recording
from harness.jobs.context import Context
from harness.jobs.matrices import hidden_matrices, recorded_spectra
from harness.numerics.orthogonalization import Triple
from harness.optimizers.calibration import Calibration, Coefficients, Shape, resolve_coefficients
from harness.plan.job import Job


def find_coefficients(
    model: str, calibration: Mapping[str, Any], context: Context
) -> dict[Shape, Coefficients]:
    """Return the coefficients of every matrix shape of a model.

    Args:
        model: Name in the catalog.
        calibration: Options of ``Calibration``; recorded matrices are those of the context's scale.
        context: Where recordings and the cache of coefficients are.
    """
    shapes = sorted({matrix.shape for matrix in hidden_matrices(model, context).values()})
    recording = validate(Recording | None, calibration.get("recording"), "calibration.recording")
    recorded = {} if recording is None else recorded_spectra(model, recording, context)
    return resolve_coefficients(shapes, calibration, context.calibration_cache, recorded)


def calibrated_triples(
    model: str, calibration: Mapping[str, Any], context: Context
) -> dict[Shape, Triple]:
    """Return the triple of every matrix shape of a model."""
    found = find_coefficients(model, calibration, context)
    return {shape: coefficients.triple for shape, coefficients in found.items()}


def calibrate(job: Job, context: Context) -> dict[str, Any]:
    """Return the coefficients of every shape with their errors, as records."""
    records: list[dict[str, Any]] = []
    for item in job.work:
        assert item.factors.model is not None
        options = item.spec["calibration"]
        factors = {"model": item.factors.model, "optimizer": item.factors.optimizer}
        for shape, result in find_coefficients(item.factors.model, options, context).items():
            rows = _records(shape, validate(Calibration, options, "calibration"), result)
            records.extend(factors | row for row in rows)
    return {"records": records}


def _records(shape: Shape, options: Calibration, result: Coefficients) -> list[dict[str, Any]]:
    labels: dict[str, Any] = {"rows": shape[0], "columns": shape[1], "source": result.source}
    if result.source == "calibrated":
        labels |= {"data": options.data, "objective": options.objective}
    values = {
        **dict(zip("abc", result.triple, strict=True)),
        "stable_up_to": result.stable_up_to,
        "error": result.error,
        "error_muon": result.error_muon,
        "error_recorded": result.error_recorded,
        "error_recorded_muon": result.error_recorded_muon,
    }
    return [
        {"metric": f"calibration/{name}", "value": value, "unit": "1", "labels": labels}
        for name, value in values.items()
        if value is not None
    ]
