"""What a scale will do and cost, for people: before it runs, and beside its results."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from harness.config.catalog import Catalog, load_catalog
from harness.config.experiment_schema import ComputeExperiment, FaultExperiment, TrainExperiment
from harness.errors import UserError
from harness.models.flops import training_flops_per_example
from harness.plan.job import Job

# Sustained rates behind the estimates: 40 % of an H100's dense bf16 peak (989 TFLOP/s), and what
# one server core of 2023 reaches in float32 training of small models.
SUSTAINED_FLOPS = {"cuda": 0.4 * 989e12, "cpu": 40e9}
UNITS = {"cuda": "H100-hours", "cpu": "CPU-core-hours"}
LARGEST_SCALE = "paper"


def summarise(catalog: Catalog, jobs: Mapping[str, Job]) -> dict[str, Any]:
    """Return scale, experiments with runs and cost, and where each can be run at full size."""
    return {
        "scale": catalog.scale_name,
        "description": catalog.scale.description,
        "device": catalog.scale.device,
        "experiments": _experiments(catalog, jobs),
        "elsewhere": _elsewhere(catalog),
    }


def _experiments(catalog: Catalog, jobs: Mapping[str, Job]) -> dict[str, Any]:
    runs: Counter[str] = Counter()
    for job in jobs.values():
        if job.experiment is not None and job.stage not in ("evaluate", "precision"):
            runs[job.experiment] += len(job.work)
    return {
        name: {
            "title": experiment.title,
            "question": experiment.question,
            "kind": experiment.kind,
            "runs": runs[name],
            "command": command(catalog.scale_name),
            "cost": cost(catalog, experiment),
            **_sweep(catalog, experiment),
        }
        for name, experiment in catalog.experiments.items()
    }


def _sweep(catalog: Catalog, experiment: Any) -> dict[str, Any]:
    if isinstance(experiment, ComputeExperiment):
        return {}
    sweep: dict[str, Any] = {"optimizers": catalog.optimizers_of(experiment)}
    if isinstance(experiment, FaultExperiment):
        return sweep
    sweep["baseline"] = experiment.baseline
    if isinstance(experiment, TrainExperiment):
        trials = {_trials(catalog, experiment, name) for name in sweep["optimizers"]}
        sweep |= {
            "task": experiment.task,
            "compare": experiment.compare,
            "models": experiment.model_names,
            "steps": experiment.training.steps,
            "seeds": experiment.seeds.model_dump(),
            # One number for all: the catalog refuses unequal tuning budgets.
            "trials": trials.pop(),
        }
    return sweep


def _elsewhere(catalog: Catalog) -> dict[str, Any]:
    try:
        largest = load_catalog(catalog.folder, LARGEST_SCALE)
    except UserError:
        return {}
    return {
        name: {
            "scale": LARGEST_SCALE,
            "command": command(LARGEST_SCALE),
            "cost": cost(largest, experiment),
        }
        for name, experiment in largest.experiments.items()
    }


def command(scale: str) -> str:
    """Return what a user types to run a scale."""
    return "snakemake" if scale == "smoke" else f"snakemake --config scale={scale}"


def cost(catalog: Catalog, experiment: Any) -> str:
    """Return the estimated cost of all runs of an experiment, with its unit."""
    if not isinstance(experiment, TrainExperiment | FaultExperiment):
        return "seconds to minutes"
    hours = training_flops(catalog, experiment) / SUSTAINED_FLOPS[catalog.scale.device] / 3600
    rounded = float(f"{hours:.2g}")
    return f"about {rounded:,g} {UNITS[catalog.scale.device]}"


def training_flops(catalog: Catalog, experiment: TrainExperiment | FaultExperiment) -> float:
    """Return the floating-point operations of all training runs of an experiment."""
    training = experiment.training
    steps = (
        _fault_steps(experiment)
        if isinstance(experiment, FaultExperiment)
        else _runs(catalog, experiment) * training.steps
    )
    per_example = sum(
        training_flops_per_example(catalog.models[model], training.sequence_length)
        for model in experiment.model_names
    )
    return steps * training.batch_size * len(experiment.datasets) * per_example


def _runs(catalog: Catalog, experiment: TrainExperiment) -> int:
    """Return the runs of all optimizers on one model and dataset."""
    seeds = experiment.seeds
    return sum(
        _trials(catalog, experiment, name) * len(seeds.tuning) + len(seeds.reporting)
        for name in catalog.optimizers_of(experiment)
    )


def _fault_steps(experiment: FaultExperiment) -> int:
    """Return the steps of all optimizers, conditions and seeds on one model and dataset."""
    faults = experiment.faults
    cells = len(faults.parts) * len(faults.bits) * faults.draws
    courses = [1 + cells * len(faults.targets_under(one)) for one in faults.conditions]
    steps = sum(faults.step + faults.observe * count for count in courses)
    return steps * len(experiment.optimizers) * len(experiment.seeds)


def _trials(catalog: Catalog, experiment: TrainExperiment, optimizer: str) -> int:
    """Return how many learning rates are tried: none if the experiment gives one."""
    return 0 if experiment.learning_rate else len(catalog.optimizers[optimizer].tune.lr)
