"""Fully resolved specifications: plain data that says everything that can change a result."""

import platform
from typing import Any

from harness.config.catalog import Catalog
from harness.config.dataset_schema import TextDataset
from harness.config.experiment_schema import FaultExperiment, TrainExperiment
from harness.plan.identity import DATA_VERSION, TRAINING_VERSION, digest, identify


def resolve_dataset(catalog: Catalog, name: str) -> dict[str, Any]:
    """Return the specification of a prepared dataset."""
    dataset = catalog.datasets[name]
    spec = dataset.model_dump() | {"version": DATA_VERSION}
    if isinstance(dataset, TextDataset) and dataset.source.type == "python_standard_library":
        # The text is that of the running interpreter, so its version is part of what it is.
        spec["source"]["python"] = platform.python_version()
    return spec


def dataset_id(catalog: Catalog, name: str) -> str:
    """Return the name of the folder that holds the prepared dataset."""
    return identify(name, resolve_dataset(catalog, name))


def resolve_optimizer(catalog: Catalog, name: str, model: str | None = None) -> dict[str, Any]:
    """Return class, parameters, arguments, companion and calibration of an optimizer entry.

    Args:
        catalog: The configuration.
        name: Of the entry.
        model: Whose matrices calibrations are fitted to; None where any coefficients do.
    """
    entry = catalog.optimizers[name]
    companion = None
    if entry.companion is not None:
        other = catalog.optimizers[entry.companion.use]
        companion = {
            "class": other.class_,
            "arguments": other.arguments,
            "lr": entry.companion.lr,
        }
    return {
        "class": entry.class_,
        "parameters": entry.parameters,
        "arguments": entry.arguments,
        "companion": companion,
        **resolve_calibration(catalog, name, model),
    }


def resolve_calibration(catalog: Catalog, optimizer: str, model: str | None) -> dict[str, Any]:
    """Return how an optimizer is calibrated, and what the recorded matrices depend on.

    ``recorded`` holds a digest per dataset of the recording experiment: of how its runs are
    trained, their learning-rate grid and their seeds. Without recorded matrices it is empty.
    """
    entry = catalog.optimizers[optimizer]
    recorded = []
    if entry.recording is not None and model is not None:
        experiment = catalog.experiments[entry.recording.experiment]
        name = entry.recording.optimizer
        tuned = [catalog.optimizers[name].tune.model_dump(), experiment.seeds.model_dump()]
        recorded = [
            digest([resolve_training(catalog, experiment, model, dataset, name), *tuned])
            for dataset in experiment.datasets
        ]
    calibration = None if entry.calibration is None else entry.calibration.model_dump()
    return {"calibration": calibration, "recorded": recorded}


def resolve_training(
    catalog: Catalog,
    experiment: TrainExperiment | FaultExperiment,
    model: str,
    dataset: str,
    optimizer: str,
) -> dict[str, Any]:
    """Return the specification of a run up to its learning rate and seed."""
    return {
        "kind": "train",
        "version": TRAINING_VERSION,
        "task": experiment.task,
        "device": catalog.scale.device,
        "compile": catalog.scale.compile,
        "model": catalog.models[model].model_dump(),
        "dataset": resolve_dataset(catalog, dataset),
        "optimizer": resolve_optimizer(catalog, optimizer, model),
        "training": experiment.training.model_dump(),
    }
