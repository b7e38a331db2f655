"""The hidden matrices of a model and what was recorded of them."""

import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from harness.config.optimizer_schema import Recording
from harness.jobs.context import Context
from harness.models import build_model
from harness.optimizers import route_parameters
from harness.optimizers.calibration import Shape
from harness.optimizers.matrices import named_matrices
from harness.plan.recordings import recording_jobs
from harness.records.snapshots import read_snapshots

# Vocabulary of the byte tokenizer: hidden matrices do not depend on it.
BYTES = 257


@dataclass(frozen=True)
class Matrix:
    """A hidden matrix.

    Attributes:
        shape: Smaller and larger side. Convolution kernels count as (output channels, rest) and
            batches as their matrices, as the optimizer sees them.
        layer: One of the model's ``layer_kinds``; None for any other.
    """

    shape: Shape
    layer: str | None


def hidden_matrices(model: str, context: Context) -> dict[str, Matrix]:
    """Return the hidden matrices of a model of the catalog by name, as ``named_matrices`` says."""
    spec = context.catalog.models[model]
    with torch.device("meta"):
        built = build_model(spec, vocab_size=BYTES if spec.family == "decoder" else None)
    parameters = dict(built.named_parameters())
    kinds = getattr(built, "layer_kinds", {})
    matrices = {}
    for name, route in route_parameters(built).items():
        if route == "matrix":
            layer = next((kind for kind, part in kinds.items() if re.search(part, name)), None)
            for matrix_name, matrix in named_matrices(name, parameters[name]).items():
                smaller, larger = sorted(matrix.shape)
                matrices[matrix_name] = Matrix((smaller, larger), layer)
    return matrices


def recorded_spectra(
    model: str, recording: Recording, context: Context
) -> dict[Shape, list[np.ndarray]]:
    """Return the singular values of every matrix that the runs of ``recording`` recorded, by shape.

    The steps of a matrix follow each other: every other one, which fits leave out, is of the same
    layers as the rest.
    """
    by_name: dict[str, list[np.ndarray]] = defaultdict(list)
    for job in recording_jobs(context.jobs.values(), model, recording):
        for run in context.reported_runs(job.name):
            for snapshot in read_snapshots(context.run_folder(run["run_id"])):
                for name, values in snapshot.spectra.items():
                    by_name[name].append(values)
    by_shape: dict[Shape, list[np.ndarray]] = defaultdict(list)
    for name, matrix in hidden_matrices(model, context).items():
        if name in by_name:
            by_shape[matrix.shape] += by_name[name]
    return dict(by_shape)
