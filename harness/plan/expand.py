"""Expansion of a catalog into jobs: the nodes that Snakemake schedules.

A job is a small batch of runs that share a process. Its name ends in a hash of what it does, so a
changed configuration is a new job beside the old one and nothing is decided by time stamps.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal

from harness.config.catalog import Catalog
from harness.config.experiment_schema import ComputeExperiment, MeasureExperiment, TrainExperiment
from harness.plan.identity import EVALUATION_VERSION, digest
from harness.plan.resolve import (
    dataset_id,
    resolve_dataset,
    resolve_optimizer,
    resolve_training,
)

Stage = Literal["check", "prepare", "calibrate", "tune", "train", "evaluate", "measure", "compute"]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The names under which the records of a run appear in tables and figures."""

    model: str | None = None
    dataset: str | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run of a job: its factors and its specification.

    In a ``train`` job the specification lacks the learning rate, which the tuning jobs decide.
    """

    factors: Factors
    spec: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A node of the workflow.

    Attributes:
        name: Readable, and ends in ``content`` unless other jobs only wait for this one.
        content: A hash of everything the job does.
        stage: Which rule runs it.
        experiment: The experiment it belongs to; None for stages that serve several.
        needs: Names of the jobs whose results it reads.
        after: Names of jobs that must have run before, but whose results do not enter its own.
        work: Its runs.
        gpu: Whether it needs a GPU.
    """

    name: str
    content: str
    stage: Stage
    experiment: str | None
    work: tuple[Work, ...]
    gpu: bool
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """The one file that Snakemake owns of this job, relative to ``results/<scale>``."""
        if self.stage == "prepare":
            return f"../data/{self.name}/manifest.json"
        return f"jobs/{self.stage}/{self.name}.json"


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


def _content(name: str) -> str:
    """Return the hash in a job's name, which says what it does but not for which experiment."""
    return name.rpartition("-")[2]


def _job(
    stage: Stage,
    label: str,
    work: list[Work],
    gpu: bool,
    *,
    experiment: str | None = None,
    needs: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
) -> Job:
    content = [asdict(item) for item in work]
    hashed = digest([stage, content, sorted(map(_content, needs))])
    return Job(
        # Jobs that others only wait for keep their name: a new one would be a new input to those.
        name=label if stage in ("check", "calibrate") else f"{label}-{hashed}",
        content=hashed,
        stage=stage,
        experiment=experiment,
        work=tuple(work),
        gpu=gpu,
        needs=needs,
        after=after,
    )


def _jobs(catalog: Catalog) -> Iterator[Job]:
    trained = {n: e for n, e in catalog.experiments.items() if isinstance(e, TrainExperiment)}
    measured = {n: e for n, e in catalog.experiments.items() if isinstance(e, MeasureExperiment)}
    common = [_check(catalog)]
    calibration = _calibration(catalog, [*trained.values(), *measured.values()])
    if calibration is not None:
        common.append(calibration)
    yield from common
    datasets = sorted({name for e in trained.values() for name in e.datasets})
    for name in datasets:
        # Downloads may take hours: the check that this machine can train at all comes first.
        yield _prepare(catalog, name, after=(common[0].name,))
    ready = tuple(job.name for job in common)
    for name, experiment in trained.items():
        for model, dataset, optimizer in product(
            experiment.models, experiment.datasets, catalog.optimizers_of(experiment)
        ):
            yield from _sweep(catalog, name, (model, dataset, optimizer), ready)
    for name, measurement in measured.items():
        yield from _measurements(catalog, name, measurement, ready)
    for name, experiment in catalog.experiments.items():
        if isinstance(experiment, ComputeExperiment):
            spec = {"function": experiment.function, "arguments": experiment.arguments,
                    "version": experiment.version}  # fmt: skip
            work = [Work(factors=Factors(), spec=spec)]
            yield _job("compute", name, work, gpu=False, experiment=name)


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
    return _job("check", "check", work, gpu=catalog.scale.device == "cuda")


def _prepare(catalog: Catalog, name: str, after: tuple[str, ...]) -> Job:
    spec = resolve_dataset(catalog, name)
    work = (Work(factors=Factors(dataset=name), spec=spec),)
    folder = dataset_id(catalog, name)
    return Job(
        name=folder,
        content=_content(folder),
        stage="prepare",
        experiment=None,
        work=work,
        gpu=False,
        after=after,
    )


def _calibration(
    catalog: Catalog, experiments: list[TrainExperiment | MeasureExperiment]
) -> Job | None:
    """One job calibrates every matrix shape that some optimizer of the scale needs."""
    pairs = sorted(
        {
            (model, optimizer)
            for experiment in experiments
            for model in experiment.models
            for optimizer in catalog.optimizers_of(experiment)
            if catalog.optimizers[optimizer].calibration is not None
        }
    )
    work = [
        Work(
            factors=Factors(model=model, optimizer=optimizer),
            spec={
                "model": catalog.models[model].model_dump(),
                "calibration": catalog.optimizers[optimizer].calibration,
            },
        )
        for model, optimizer in pairs
    ]
    return _job("calibrate", "calibrate", work, gpu=False) if work else None


def _chunks(work: list[Work], size: int) -> Iterator[list[Work]]:
    for start in range(0, len(work), size):
        yield work[start : start + size]


def _sweep(
    catalog: Catalog, name: str, names: tuple[str, str, str], ready: tuple[str, ...]
) -> Iterator[Job]:
    """Tuning jobs, the reporting jobs that read them, and the evaluation of what those trained."""
    experiment = catalog.experiments[name]
    model, dataset, optimizer = names
    base = resolve_training(catalog, experiment, model, dataset, optimizer)
    gpu = catalog.scale.device == "cuda"
    size = catalog.scale.runs_per_job
    data = dataset_id(catalog, dataset)
    label = ".".join((name, *names))

    def work(seed: int, rate: float | None = None) -> Work:
        factors = Factors(model=model, dataset=dataset, optimizer=optimizer, seed=seed,
                          learning_rate=rate)  # fmt: skip
        chosen = {} if rate is None else {"learning_rate": rate}
        return Work(factors=factors, spec=base | {"seed": seed} | chosen)

    rates = catalog.optimizers[optimizer].tune.lr
    trials = [work(seed, rate) for seed in experiment.seeds.tuning for rate in rates]
    tuning = [
        _job("tune", label, part, gpu, needs=(data,), after=ready, experiment=name)
        for part in _chunks(trials, size)
    ]
    yield from tuning
    reports = [work(seed) for seed in experiment.seeds.reporting]
    tuned = (data, *(job.name for job in tuning))
    for part in _chunks(reports, size):
        job = _job("train", label, part, gpu, needs=tuned, after=ready, experiment=name)
        yield job
        if experiment.evaluation is not None:
            spec = experiment.evaluation.model_dump() | {"version": EVALUATION_VERSION}
            item = Work(
                factors=Factors(model=model, dataset=dataset, optimizer=optimizer), spec=spec
            )
            trained = (data, job.name)
            yield _job("evaluate", label, [item], gpu, needs=trained, after=ready, experiment=name)


def _measurements(
    catalog: Catalog, name: str, experiment: MeasureExperiment, ready: tuple[str, ...]
) -> Iterator[Job]:
    optimizers = {n: resolve_optimizer(catalog, n) for n in catalog.optimizers_of(experiment)}
    for model in experiment.models:
        spec = {
            "model": catalog.models[model].model_dump(),
            "optimizers": optimizers,
            "rounds": experiment.rounds,
            "device": catalog.scale.device,
            "version": experiment.version,
        }
        work = [Work(factors=Factors(model=model), spec=spec)]
        gpu = catalog.scale.device == "cuda"
        yield _job("measure", f"{name}.{model}", work, gpu, after=ready, experiment=name)
