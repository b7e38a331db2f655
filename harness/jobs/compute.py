"""The jobs that call a function of the configuration: a closed form, a simulation, a timing."""

from typing import Any

from harness.config.base import validate
from harness.config.imports import import_function
from harness.config.model_schema import ModelSpec
from harness.errors import UserError
from harness.jobs.context import Context
from harness.plan.job import Job
from harness.training.devices import leased_device


def compute(job: Job, context: Context) -> dict[str, Any]:
    """Call the function of ``job`` and return its records.

    Raises:
        UserError: If there is no such function, it refuses the arguments or returns no list.
    """
    [item] = job.work
    assert job.experiment is not None
    path, where = item.spec["function"], f"{context.catalog.place_of(job.experiment)}: function"
    function = import_function(path, where)
    arguments = dict(item.spec["arguments"])
    if "models" in item.spec:
        arguments["models"] = {
            name: validate(ModelSpec, spec, f"models.yaml: {name}")
            for name, spec in item.spec["models"].items()
        }
    if "device" not in item.spec:
        records = function(**arguments)
    else:
        with leased_device(item.spec["device"], context.device_key) as device:
            records = function(**arguments, device=device)
    if not isinstance(records, list):
        raise UserError(f"{where}: found '{path}', which returns {type(records).__name__}, "
                        "expected a list of records")  # fmt: skip
    return {"records": records}
