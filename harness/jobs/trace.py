"""A Chrome trace of the first steps of a job's first run."""

from pathlib import Path

from harness.errors import UserError, closest
from harness.jobs.context import Context
from harness.jobs.train import coefficients_of
from harness.training.devices import leased_device


def trace(name: str, context: Context, output: Path) -> None:
    """Write a trace of the first run of the tuning or training job ``name`` to ``output``.

    Raises:
        UserError: If there is no such job, or it does not know its learning rate yet.
    """
    jobs = {n: job for n, job in context.jobs.items() if job.stage in ("tune", "train")}
    if name not in jobs:
        raise UserError(f"--name: found '{name}', expected a job that trains{closest(name, jobs)}")
    item = jobs[name].work[0]
    if "learning_rate" not in item.spec:
        raise UserError(f"--name: found '{name}', whose learning rate is yet to be tuned; expected "
                        "one of the tuning jobs")  # fmt: skip
    with leased_device(context.catalog.scale.device, context.device_key) as device:
        from harness.processor import set_up_processor
        from harness.training.trace import trace_steps

        set_up_processor(context.catalog.scale.threads)
        data = context.dataset_folder(jobs[name])
        trace_steps(item.spec, data, device, coefficients_of(item, context), output)
