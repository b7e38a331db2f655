"""Fully resolved specifications: plain data that says everything that can change a result."""

import platform
from typing import Any

from harness.config.catalog import Catalog
from harness.config.dataset_schema import TextDataset
from harness.config.experiment_schema import TrainExperiment
from harness.plan.identity import DATA_VERSION, TRAINING_VERSION, identify


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


def resolve_optimizer(catalog: Catalog, name: str) -> dict[str, Any]:
    """Return class, parameters, arguments, companion and calibration of an optimizer entry."""
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
        "calibration": entry.calibration,
    }


def resolve_training(
    catalog: Catalog, experiment: TrainExperiment, model: str, dataset: str, optimizer: str
) -> dict[str, Any]:
    """Return the specification of a run up to its learning rate and seed."""
    return {
        "kind": "train",
        "version": TRAINING_VERSION,
        "task": experiment.task,
        "device": catalog.scale.device,
        "model": catalog.models[model].model_dump(),
        "dataset": resolve_dataset(catalog, dataset),
        "optimizer": resolve_optimizer(catalog, optimizer),
        "training": experiment.training.model_dump(),
    }
