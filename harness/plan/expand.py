"""Expansion of a catalog into jobs: the nodes that Snakemake schedules.

A job is a small batch of runs that share a process. Its name ends in a hash of what it does, so a
changed configuration is a new job beside the old one and nothing is decided by time stamps.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from harness.config.catalog import Catalog
from harness.config.experiment_schema import (
    ComputeExperiment,
    FaultExperiment,
    MeasureExperiment,
    TrainExperiment,
)
from harness.plan.identity import EVALUATION_VERSION, FAULTS_VERSION
from harness.plan.job import Factors, Job, Work, content_of, make_job
from harness.plan.recordings import (
    gaussian_calibration,
    precision_job,
    recorded_calibration,
    recorded_inputs,
)
from harness.plan.resolve import (
    dataset_id,
    resolve_dataset,
    resolve_optimizer,
    resolve_training,
)

Names = tuple[str, ...]
# Experiment, model, dataset and optimizer.
Sweep = tuple[str, str, str, str]


def expand(catalog: Catalog) -> dict[str, Job]:
    """Return the jobs of all experiments of the catalog's scale by name.

    Experiments may share runs. The second job with equal work waits for the first and then finds
    everything done, instead of waiting for it run by run.
    """
    jobs: dict[str, Job] = {}
    first: dict[str, str] = {}
    for job in _jobs(catalog):
        earlier = first.setdefault(job.content, job.name)
        if earlier != job.name:
            job = replace(job, after=(*job.after, earlier))
        jobs[job.name] = job
    return jobs


def _jobs(catalog: Catalog) -> Iterator[Job]:
    trained = {n: e for n, e in catalog.experiments.items() if isinstance(e, TrainExperiment)}
    measured = {n: e for n, e in catalog.experiments.items() if isinstance(e, MeasureExperiment)}
    faulty = {n: e for n, e in catalog.experiments.items() if isinstance(e, FaultExperiment)}
    plain, recorded = _calibrated(
        catalog, [*trained.values(), *measured.values(), *faulty.values()]
    )
    common = [_check(catalog)]
    calibration = gaussian_calibration(catalog, plain)
    if calibration is not None:
        common.append(calibration)
    yield from common
    learning: list[TrainExperiment | FaultExperiment] = [*trained.values(), *faulty.values()]
    datasets = sorted({name for e in learning for name in e.datasets})
    for name in datasets:
        # Downloads may take hours: the check that this machine can train at all comes first.
        yield _prepare(catalog, name, after=(common[0].name,))
    ready = tuple(job.name for job in common)
    reports: list[Job] = []
    sweeps = [
        (name, *names)
        for name, e in trained.items()
        for names in product(e.model_names, e.datasets, catalog.optimizers_of(e))
    ]
    yield from _train(catalog, [s for s in sweeps if (s[1], s[3]) not in recorded], ready, reports)
    for model, optimizer in recorded:
        yield recorded_calibration(catalog, model, optimizer, reports)
    yield from _train(catalog, [s for s in sweeps if (s[1], s[3]) in recorded], ready, reports)
    for job in reports:
        precision = precision_job(catalog, job, reports, ready)
        if precision is not None:
            yield precision
    for name, measurement in measured.items():
        yield from _measurements(catalog, name, measurement, ready, reports)
    for name, faults in faulty.items():
        yield from _faults(catalog, name, faults, ready, reports)
    for name, experiment in catalog.experiments.items():
        if isinstance(experiment, ComputeExperiment):
            yield _computation(catalog, name, experiment)


def _calibrated(
    catalog: Catalog, experiments: Iterable[TrainExperiment | MeasureExperiment | FaultExperiment]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the pairs of model and optimizer to calibrate: on Gaussian and recorded matrices."""
    pairs = sorted(
        {
            (model, optimizer)
            for experiment in experiments
            for model in catalog.models_of(experiment)
            for optimizer in catalog.optimizers_of(experiment)
            if catalog.optimizers[optimizer].calibration is not None
        }
    )
    recorded = [pair for pair in pairs if catalog.optimizers[pair[1]].recording is not None]
    return [pair for pair in pairs if pair not in recorded], recorded


def _check(catalog: Catalog) -> Job:
    experiments = [e for e in catalog.experiments.values() if not isinstance(e, ComputeExperiment)]
    optimizers = sorted({name for e in experiments for name in catalog.optimizers_of(e)})
    work = [
        Work(
            factors=Factors(optimizer=name),
            spec=resolve_optimizer(catalog, name) | {"device": catalog.scale.device},
        )
        for name in optimizers
    ]
    return make_job("check", "check", work, gpu=catalog.scale.device == "cuda")


def _prepare(catalog: Catalog, name: str, after: Names) -> Job:
    spec = resolve_dataset(catalog, name)
    work = (Work(factors=Factors(dataset=name), spec=spec),)
    folder = dataset_id(catalog, name)
    return Job(
        name=folder,
        content=content_of(folder),
        stage="prepare",
        experiment=None,
        work=work,
        gpu=False,
        after=after,
    )


def _chunks(work: list[Work], size: int) -> Iterator[list[Work]]:
    for start in range(0, len(work), size):
        yield work[start : start + size]


def _train(
    catalog: Catalog, sweeps: Iterable[Sweep], ready: Names, reports: list[Job]
) -> Iterator[Job]:
    """Yield the jobs of ``sweeps`` and add the reporting ones to ``reports``."""
    for sweep in sweeps:
        for job in _sweep(catalog, sweep, ready, reports):
            if job.stage == "train":
                reports.append(job)
            yield job


def _sweep(catalog: Catalog, sweep: Sweep, ready: Names, reports: list[Job]) -> Iterator[Job]:
    """Tuning jobs, the reporting jobs that read them, and the evaluation of what those trained.

    A sweep that fits one process is one job: short runs cost less than starting to run them.
    """
    name, model, dataset, optimizer = sweep
    experiment = catalog.experiments[name]
    base = resolve_training(catalog, experiment, model, dataset, optimizer)
    gpu = catalog.scale.device == "cuda"
    size = catalog.scale.runs_per_job
    recordings, calibrations = recorded_inputs(catalog, model, [optimizer], reports)
    inputs = (dataset_id(catalog, dataset), *recordings)
    after = (*ready, *calibrations)
    label = ".".join(sweep)

    def work(seed: int, rate: float | None = None) -> Work:
        factors = Factors(model=model, dataset=dataset, optimizer=optimizer, seed=seed,
                          learning_rate=rate)  # fmt: skip
        spec = base | {"seed": seed} | ({} if rate is None else {"learning_rate": rate})
        return Work(factors=factors, spec=spec)

    def trial(seed: int, rate: float) -> Work:
        # Nobody looks at what a trial would record.
        training = base["training"] | {"recording_interval": None}
        item = work(seed, rate)
        return replace(item, spec=item.spec | {"training": training}, role="tuning")

    fixed = experiment.learning_rate
    rates = [] if fixed is not None else catalog.optimizers[optimizer].tune.lr
    trials = [trial(seed, rate) for seed in experiment.seeds.tuning for rate in rates]
    reporting = [work(seed, fixed) for seed in experiment.seeds.reporting]
    if len(trials) + len(reporting) <= size:
        trials, reporting = [], trials + reporting
    tuning = [
        make_job("tune", label, part, gpu, needs=inputs, after=after, experiment=name)
        for part in _chunks(trials, size)
    ]
    yield from tuning
    tuned = (*inputs, *(job.name for job in tuning))
    for part in _chunks(reporting, size):
        job = make_job("train", label, part, gpu, needs=tuned, after=after, experiment=name)
        yield job
        if experiment.evaluation is not None:
            spec = experiment.evaluation.model_dump() | {"version": EVALUATION_VERSION}
            item = Work(
                factors=Factors(model=model, dataset=dataset, optimizer=optimizer), spec=spec
            )
            needs = (inputs[0], job.name)
            yield make_job("evaluate", label, [item], gpu, needs=needs, after=ready,
                           experiment=name)  # fmt: skip


def _measurements(
    catalog: Catalog, name: str, experiment: MeasureExperiment, ready: Names, reports: list[Job]
) -> Iterator[Job]:
    optimizers = catalog.optimizers_of(experiment)
    for model in experiment.models:
        spec = {
            "model": catalog.models[model].model_dump(),
            "optimizers": {n: resolve_optimizer(catalog, n, model) for n in optimizers},
            "rounds": experiment.rounds,
            "device": catalog.scale.device,
            "version": experiment.version,
        }
        needs, calibrations = recorded_inputs(catalog, model, optimizers, reports)
        yield make_job(
            "measure",
            f"{name}.{model}",
            [Work(factors=Factors(model=model), spec=spec)],
            gpu=catalog.scale.device == "cuda",
            experiment=name,
            needs=needs,
            after=(*ready, *calibrations),
        )


def _faults(
    catalog: Catalog, name: str, experiment: FaultExperiment, ready: Names, reports: list[Job]
) -> Iterator[Job]:
    gpu = catalog.scale.device == "cuda"
    for sweep in product(experiment.model_names, experiment.datasets, experiment.optimizers):
        model, dataset, optimizer = sweep
        work = list(_fault_work(catalog, experiment, model, dataset, optimizer))
        recordings, calibrations = recorded_inputs(catalog, model, [optimizer], reports)
        needs, after = (dataset_id(catalog, dataset), *recordings), (*ready, *calibrations)
        for part in _chunks(work, catalog.scale.runs_per_job):
            yield make_job("faults", ".".join((name, *sweep)), part, gpu, needs=needs, after=after,
                           experiment=name)  # fmt: skip


def _fault_work(
    catalog: Catalog, experiment: FaultExperiment, model: str, dataset: str, optimizer: str
) -> Iterator[Work]:
    """Yield a run per condition and seed, from which all faults start."""
    base = resolve_training(catalog, experiment, model, dataset, optimizer)
    faults, rate = experiment.faults, experiment.optimizers[optimizer]
    # Compiled layers skip the hooks through which activations are hit.
    base |= {"kind": "faults", "compile": False, "learning_rate": rate}
    for condition, seed in product(faults.conditions, experiment.seeds):
        changed = condition.model_dump(include={"gradient_clip", "precision"})
        options = faults.model_dump(exclude={"conditions"})
        options |= {"targets": faults.targets_under(condition), "version": FAULTS_VERSION}
        factors = Factors(model=model, dataset=dataset, optimizer=optimizer, seed=seed,
                          learning_rate=rate)  # fmt: skip
        spec = base | {"training": base["training"] | changed, "faults": options, "seed": seed}
        yield Work(factors=factors, spec=spec)


def _computation(catalog: Catalog, name: str, experiment: ComputeExperiment) -> Job:
    spec: dict[str, Any] = {
        "function": experiment.function,
        "arguments": experiment.arguments,
        "version": experiment.version,
    }
    if experiment.models:
        spec["models"] = {
            name: catalog.models[entry].model_dump()
            for entry, name in experiment.model_names.items()
        }
    if not experiment.timed:
        return make_job("compute", name, [Work(factors=Factors(), spec=spec)], gpu=False,
                        experiment=name)  # fmt: skip
    spec["device"] = catalog.scale.device
    gpu = catalog.scale.device == "cuda"
    return make_job("measure", name, [Work(factors=Factors(), spec=spec)], gpu, experiment=name)
