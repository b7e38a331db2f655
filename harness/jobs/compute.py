"""The jobs that call a function of the configuration: a closed form, a simulation, a timing."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.errors import UserError, closest
from harness.jobs.context import Context
from harness.plan.job import Job
from harness.training.devices import leased_device


def compute(job: Job, context: Context) -> dict[str, Any]:
    """Call the function of ``job`` and return its records.

    Raises:
        UserError: If there is no such function or it refuses the arguments.
    """
    [item] = job.work
    function = _load(
        item.spec["function"], f"{context.catalog.folder}/experiments/{job.experiment}.yaml"
    )
    arguments = dict(item.spec["arguments"])
    if "models" in item.spec:
        arguments["models"] = {
            name: validate(ModelSpec, spec, f"models.yaml: {name}")
            for name, spec in item.spec["models"].items()
        }
    if "device" not in item.spec:
        return {"records": function(**arguments)}
    with leased_device(item.spec["device"], context.device_key) as device:
        return {"records": function(**arguments, device=device)}


def _load(function: str, where: str) -> Callable[..., list[dict[str, Any]]]:
    path, _, name = function.rpartition(".")
    try:
        module = import_module(path)
    except ImportError as error:
        raise UserError(f"{where}: function: module '{path}' cannot be imported: {error}") from None
    if not hasattr(module, name):
        raise UserError(f"{where}: function: found '{name}'{closest(name, vars(module))}")
    return getattr(module, name)
