"""A Chrome trace of a few training steps, for people who ask where the time goes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from harness.errors import UserError
from harness.training.step import Coefficients, TrainingStep

# Steps that pay for compilation, allocation and caches, and steps in the trace.
WARMUP, TRACED = 3, 3


def trace_steps(
    spec: Mapping[str, Any],
    data: Path,
    device: str,
    coefficients: Coefficients | None,
    output: Path,
) -> None:
    """Train the first steps of ``spec`` and write a trace of the last ones; no run is touched.

    Args:
        spec: Resolved training specification with learning rate and seed.
        data: Folder of the prepared dataset.
        device: torch device to train on.
        coefficients: AdaNewton coefficients by matrix shape, for optimizers that need them.
        output: File to write, in the format of chrome://tracing and Perfetto.

    Raises:
        UserError: If the run has fewer steps than are needed.
    """
    steps = spec["training"]["steps"]
    if steps < WARMUP + TRACED:
        raise UserError(f"training.steps: found {steps}, expected at least {WARMUP + TRACED} for a "
                        "trace")  # fmt: skip
    place = torch.device(device)
    step = TrainingStep(spec, data, place, coefficients)
    activities = [ProfilerActivity.CPU]
    if place.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    for index in range(WARMUP):
        step.take(index)
    with profile(activities=activities) as profiler:
        for index in range(WARMUP, WARMUP + TRACED):
            with record_function(f"step {index}"):
                step.take(index)
        if place.type == "cuda":
            torch.cuda.synchronize(place)
    step.close()
    output.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(output))
