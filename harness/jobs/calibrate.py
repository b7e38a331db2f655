"""The job that finds AdaNewton coefficients for every matrix shape of the scale's models."""

from collections.abc import Sequence
from typing import Any

import torch

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.jobs.context import Context
from harness.models import build_model
from harness.optimizers import route_parameters
from harness.optimizers.calibration import resolve_coefficients
from harness.plan.expand import Job


def matrix_shapes(model_spec: Any) -> list[tuple[int, int]]:
    """Return the sorted (smaller, larger) shapes of a model's hidden matrices.

    Convolution kernels count as (output channels, rest), as the optimizer sees them.
    """
    with torch.device("meta"):
        model = build_model(model_spec, vocab_size=model_spec_vocabulary(model_spec))
    parameters = dict(model.named_parameters())
    shapes = set()
    for name, kind in route_parameters(model).items():
        if kind == "matrix":
            rows, columns = parameters[name].flatten(1).shape
            shapes.add((min(rows, columns), max(rows, columns)))
    return sorted(shapes)


def calibrate(job: Job, context: Context) -> dict[str, Any]:
    """Return the coefficients of every shape with their errors, as records."""
    records: list[dict[str, Any]] = []
    for item in job.work:
        spec = validate(ModelSpec, item.spec["model"], f"models.yaml: {item.factors.model}")
        found = resolve_coefficients(
            matrix_shapes(spec), item.spec["calibration"], context.calibration_cache
        )
        for shape, result in found.items():
            records.extend(_records(shape, result, item.factors.model, item.factors.optimizer))
    return {"records": records}
