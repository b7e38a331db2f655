"""The job that finds AdaNewton coefficients for every matrix shape of the scale's models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.jobs.context import Context
from harness.models import build_model
from harness.numerics.orthogonalization import Triple
from harness.optimizers import route_parameters
from harness.optimizers.calibration import Coefficients, resolve_coefficients
from harness.plan.expand import Job

# Vocabulary of the byte tokenizer: hidden matrices do not depend on it.
BYTES = 257


def matrix_shapes(model_spec: Any) -> list[tuple[int, int]]:
    """Return the sorted (smaller, larger) shapes of a model's hidden matrices.

    Convolution kernels count as (output channels, rest), as the optimizer sees them.
    """
    with torch.device("meta"):
        vocabulary = BYTES if model_spec.family == "decoder" else None
        model = build_model(model_spec, vocab_size=vocabulary)
    parameters = dict(model.named_parameters())
    shapes = set()
    for name, route in route_parameters(model).items():
        if route == "matrix":
            rows, columns = parameters[name].flatten(1).shape
            shapes.add((min(rows, columns), max(rows, columns)))
    return sorted(shapes)


def calibrated_triples(
    model_spec: Any, calibration: Mapping[str, Any], cache: Path
) -> dict[tuple[int, int], Triple]:
    """Return the triple of every matrix shape of a model."""
    found = resolve_coefficients(matrix_shapes(model_spec), calibration, cache)
    return {shape: coefficients.triple for shape, coefficients in found.items()}


def calibrate(job: Job, context: Context) -> dict[str, Any]:
    """Return the coefficients of every shape with their errors, as records."""
    records: list[dict[str, Any]] = []
    for item in job.work:
        spec = validate(ModelSpec, item.spec["model"], f"models.yaml: {item.factors.model}")
        found = resolve_coefficients(
            matrix_shapes(spec), item.spec["calibration"], context.calibration_cache
        )
        factors = {"model": item.factors.model, "optimizer": item.factors.optimizer}
        for shape, result in found.items():
            records.extend(factors | record for record in _records(shape, result))
    return {"records": records}


def _records(shape: tuple[int, int], result: Coefficients) -> list[dict[str, Any]]:
    labels = {"rows": shape[0], "columns": shape[1], "source": result.source}
    values = {
        **dict(zip("abc", result.triple, strict=True)),
        "error": result.error,
        "error_muon": result.error_muon,
    }
    return [
        {"metric": f"calibration/{name}", "value": value, "unit": "1", "labels": labels}
        for name, value in values.items()
    ]
