"""The jobs around matrices that training recorded: fits to them, and their precision."""

from collections.abc import Iterable

from harness.config.catalog import Catalog
from harness.config.experiment_schema import TrainExperiment
from harness.config.optimizer_schema import Recording
from harness.plan.identity import PRECISION_VERSION
from harness.plan.job import Factors, Job, Work, make_job
from harness.plan.resolve import resolve_calibration

Names = tuple[str, ...]


def recording_jobs(jobs: Iterable[Job], model: str, recording: Recording) -> list[Job]:
    """Return the jobs that train what ``recording`` names, on all datasets of its experiment."""
    return [
        job
        for job in jobs
        if (job.stage, job.experiment) == ("train", recording.experiment)
        and (job.work[0].factors.model, job.work[0].factors.optimizer)
        == (model, recording.optimizer)
    ]


def recorded_inputs(
    catalog: Catalog, model: str, optimizers: Iterable[str], reports: list[Job]
) -> tuple[Names, Names]:
    """Return what a job needs, and what it runs after, for recorded calibrations it may use.

    Args:
        catalog: The configuration.
        model: Whose matrices.
        optimizers: Those that the job uses.
        reports: The train jobs that record.
    """
    needs, after = [], []
    for name in optimizers:
        recording = catalog.optimizers[name].recording
        if recording is not None:
            needs += [job.name for job in recording_jobs(reports, model, recording)]
            after.append(_calibration_name(model, name))
    return tuple(dict.fromkeys(needs)), tuple(after)


def gaussian_calibration(catalog: Catalog, pairs: Iterable[tuple[str, str]]) -> Job | None:
    """Return the job that fits Gaussian matrices for ``pairs`` of model and optimizer."""
    work = [_calibration_work(catalog, *pair) for pair in pairs]
    return make_job("calibrate", "calibrate", work, gpu=False) if work else None


def recorded_calibration(catalog: Catalog, model: str, optimizer: str, reports: list[Job]) -> Job:
    """Return the job that fits what ``reports`` recorded of a model, for one optimizer."""
    work = [_calibration_work(catalog, model, optimizer)]
    needs, _ = recorded_inputs(catalog, model, [optimizer], reports)
    name = _calibration_name(model, optimizer)
    return make_job("calibrate", name, work, gpu=False, needs=needs)


def precision_job(catalog: Catalog, trained: Job, reports: list[Job], ready: Names) -> Job | None:
    """Return the job that judges coefficients on what ``trained`` recorded; None if nothing.

    Args:
        catalog: The configuration.
        trained: A train job.
        reports: All train jobs that recorded calibrations may need.
        ready: Names of the jobs that come before all others.
    """
    assert trained.experiment is not None
    experiment = catalog.experiments[trained.experiment]
    factors = trained.work[0].factors
    assert factors.model is not None
    assert factors.optimizer is not None
    hidden_matrices = catalog.optimizers[factors.optimizer].parameters == "matrices"
    if experiment.training.recording_interval is None or not hidden_matrices:
        return None
    names = _calibrated(catalog, experiment)
    spec = {
        "calibrations": {name: resolve_calibration(catalog, name, factors.model) for name in names},
        "version": PRECISION_VERSION,
    }
    needs, after = recorded_inputs(catalog, factors.model, names, reports)
    item = Work(
        factors=Factors(model=factors.model, dataset=factors.dataset, optimizer=factors.optimizer),
        spec=spec,
    )
    return make_job(
        "precision",
        trained.name.rpartition("-")[0],
        [item],
        gpu=False,
        experiment=trained.experiment,
        # The job whose runs are judged comes first.
        needs=tuple(dict.fromkeys((trained.name, *needs))),
        after=(*ready, *after),
    )


def _calibrated(catalog: Catalog, experiment: TrainExperiment) -> list[str]:
    """Return the optimizers of an experiment that are calibrated, each calibration once.

    A variant that keeps the calibration of its base has the coefficients of its base.
    """
    optimizers = catalog.optimizers_of(experiment)
    names = []
    for name in optimizers:
        entry = catalog.optimizers[name]
        if entry.calibration is not None:
            base = entry.variant_of or name
            if base in optimizers and entry.calibration == catalog.optimizers[base].calibration:
                name = base
            names.append(name)
    return list(dict.fromkeys(names))


def _calibration_work(catalog: Catalog, model: str, optimizer: str) -> Work:
    spec = {"model": catalog.models[model].model_dump()}
    spec |= resolve_calibration(catalog, optimizer, model)
    return Work(factors=Factors(model=model, optimizer=optimizer), spec=spec)


def _calibration_name(model: str, optimizer: str) -> str:
    return f"calibrate.{model}.{optimizer}"
