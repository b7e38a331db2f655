# The plan, read once; a mistake in the configuration ends here, before any job, with one line.
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from harness.errors import UserError
from harness.files import hold_folder
from harness.plan.priority import priorities
from harness.plan.workflow import Settings, WorkflowPlan
from harness.training.devices import visible_gpus

try:
    SETTINGS = Settings.read(config)
    SCALE, CONFIG = SETTINGS.scale, SETTINGS.config
    # A folder of records from elsewhere, e.g. results/reference/h100, replaces this machine's own.
    RECORDS = SETTINGS.records or f"results/{SCALE}"
    PLAN = WorkflowPlan.load(Path(CONFIG), SCALE)
    if workflow.is_main_process and not workflow.output_settings.dryrun:
        # Snakemake's own lock outlives a killed process; the kernel frees this one.
        FOLDER_LOCK = hold_folder(Path(".snakemake"))
except UserError as error:
    raise WorkflowError(str(error)) from None


# What experiments that the scale lists first need comes first, in case time runs out.
PRIORITY = priorities(PLAN.jobs, list(PLAN.catalog.experiments))


wildcard_constraints:
    job="[^/]+",


if "gpu" not in workflow.global_resources and visible_gpus():
    # As many GPU jobs at a time as there are GPUs, or shares of them; each job leases its own.
    workflow.register_resource("gpu", len(visible_gpus()) * PLAN.catalog.scale.jobs_per_gpu)


# The interpreter that runs Snakemake, so that rules work without an activated environment.
HARNESS = f"{shlex.quote(sys.executable)} -m harness"

# Every job is this one command; `--log` takes its progress, errors still reach the terminal.
JOB = (
    "{HARNESS} job --config {CONFIG:q} --scale {SCALE:q}"
    " --name {wildcards.job:q} --log {log:q}"
)


def needs(wildcards):
    return PLAN.needs(wildcards.job)


def after(wildcards):
    # Only the order matters: a newer file here is no reason to repeat a job.
    return [ancient(path) for path in PLAN.after(wildcards.job)]


def content(wildcards):
    return PLAN.content(wildcards.job)


def gpus(wildcards):
    return PLAN.gpus(wildcards.job)


def alone(wildcards):
    return PLAN.catalog.scale.threads if PLAN.gpus(wildcards.job) else workflow.cores


def priority(wildcards):
    return PRIORITY[wildcards.job]
