"""The jobs that measure time: optimizer steps, or what a function of the configuration times."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.jobs.calibrate import calibrated_triples
from harness.jobs.compute import compute
from harness.jobs.context import Context
from harness.jobs.matrices import BYTES
from harness.measurement.optimizer_step import time_optimizer_steps
from harness.models import build_model
from harness.optimizers import build_optimizer
from harness.plan.job import Job
from harness.training.devices import leased_device

# Any rate does: the time of a step does not depend on it.
LEARNING_RATE = 1e-3


def measure(job: Job, context: Context) -> dict[str, Any]:
    """Return one record per optimizer and round, or what the function of ``job`` returns."""
    [item] = job.work
    if "function" in item.spec:
        return compute(job, context)
    model_spec = validate(ModelSpec, item.spec["model"], f"models.yaml: {item.factors.model}")

    def builder(spec: Mapping[str, Any]) -> Callable[[nn.Module], Any]:
        calibration = spec["calibration"]
        triples = None
        if calibration is not None:
            triples = calibrated_triples(str(item.factors.model), calibration, context)
        return lambda model: build_optimizer(spec, model, LEARNING_RATE, triples)

    with leased_device(item.spec["device"], context.device_key) as device:
        torch.manual_seed(0)
        vocabulary = BYTES if model_spec.family == "decoder" else None
        model = build_model(model_spec, vocab_size=vocabulary).to(device)
        builders = {name: builder(spec) for name, spec in item.spec["optimizers"].items()}
        records = time_optimizer_steps(builders, model, item.spec["rounds"])
    return {"records": [{"model": item.factors.model, **record} for record in records]}
