"""The job that judges coefficients on the matrices that a training job recorded."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from harness.jobs.calibrate import calibrated_triples
from harness.jobs.context import Context
from harness.jobs.matrices import Matrix, hidden_matrices
from harness.numerics.orthogonalization import Triple, relative_error, schedule
from harness.optimizers.calibration import Shape
from harness.plan.job import Job
from harness.records.run_folder import require_summary
from harness.records.snapshots import EDGES, PROBABILITIES, Snapshot, read_snapshots

# Newton-Schulz steps of ROOT's released code, of Muon and of the published figure.
STEPS = 5
FIXED = ("cubic", "muon")
# The published figure is flat from step 1,200 of 10,000 on.
STEADY_FROM = 0.12

Polynomials = Mapping[str, Mapping[Shape, Sequence[Triple]]]


def precision(job: Job, context: Context) -> dict[str, Any]:
    """Return errors by step, layer and coefficients, and how gradients are distributed."""
    [item] = job.work
    model = item.factors.model
    assert model is not None
    matrices = hidden_matrices(model, context)
    polynomials: dict[str, dict[Shape, Sequence[Triple]]] = {
        name: {matrix.shape: schedule(name, STEPS) for matrix in matrices.values()}
        for name in FIXED
    }
    for name, spec in item.spec["calibrations"].items():
        triples = calibrated_triples(model, spec["calibration"], context)
        polynomials[name] = {shape: [triple] * STEPS for shape, triple in triples.items()}
    records: list[dict[str, Any]] = []
    for run in context.reported_runs(job.needs[0]):
        folder = context.run_folder(run["run_id"])
        steps = require_summary(folder)["spec"]["training"]["steps"]
        snapshots = list(read_snapshots(folder))
        common = {"run_id": run["run_id"], **run["factors"], "unit": "1"}
        if snapshots:
            rows = [*_errors(snapshots, steps, matrices, polynomials),
                    *_gradients(snapshots[len(snapshots) // 2])]  # fmt: skip
            records.extend(common | row for row in rows)
    return {"records": records}


def layer_errors(
    snapshot: Snapshot, matrices: Mapping[str, Matrix], triples: Mapping[Shape, Sequence[Triple]]
) -> dict[str, float]:
    """Return the relative Frobenius error by kind of layer, its mean over all such matrices."""
    errors = defaultdict(list)
    for name, values in snapshot.spectra.items():
        matrix = matrices[name]
        if matrix.layer is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                errors[matrix.layer].append(relative_error(values, triples[matrix.shape]))
    return {layer: float(np.mean(found)) for layer, found in errors.items()}


def _errors(
    snapshots: Sequence[Snapshot],
    steps: int,
    matrices: Mapping[str, Matrix],
    polynomials: Polynomials,
) -> Iterator[dict[str, Any]]:
    for name, triples in polynomials.items():
        steady = defaultdict(list)
        for snapshot in snapshots:
            for layer, error in layer_errors(snapshot, matrices, triples).items():
                labels = {"layer": layer, "coefficients": name}
                yield {"metric": "orthogonalization/error", "step": snapshot.step, "value": error,
                       "labels": labels}  # fmt: skip
                if snapshot.step >= STEADY_FROM * steps:
                    steady[layer].append(error)
        for layer, errors in steady.items():
            labels = {"layer": layer, "coefficients": name}
            yield {"metric": "orthogonalization/steady_error", "value": float(np.mean(errors)),
                   "labels": labels}  # fmt: skip


def _gradients(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """Yield quantiles, and the counts of the bins that are not empty."""
    for probability, value in zip(PROBABILITIES, snapshot.quantiles, strict=True):
        yield {"metric": "gradient/quantile", "step": snapshot.step, "value": float(value),
               "labels": {"probability": float(probability)}}  # fmt: skip
    for lower, count in zip(EDGES[:-1], snapshot.histogram, strict=True):
        if count:
            yield {"metric": "gradient/histogram", "step": snapshot.step, "value": float(count),
                   "labels": {"lower": float(lower)}}  # fmt: skip
