"""Checks of what the catalog does not hold: classes, functions, ledgers and data folders."""

from harness.config.base import validate
from harness.config.catalog import Catalog
from harness.config.claims_schema import load_claims
from harness.config.experiment_schema import (
    ComputeExperiment,
    Evaluation,
    FaultExperiment,
    TrainExperiment,
)
from harness.config.imports import check_keywords, import_function
from harness.config.recommendations_schema import load_recommendations
from harness.data.locations import locate
from harness.errors import UserError, closest
from harness.evaluation.heldout_tasks import HELDOUT_TASKS
from harness.evaluation.standard_tasks import definitions, mirrored_files
from harness.optimizers import check_arguments, orthogonalizes
from harness.optimizers.calibration import Calibration
from harness.plan.resolve import resolve_optimizer


def verify(catalog: Catalog, *, data: bool = True) -> None:
    """Check what the experiments of the scale and their report will use, before anything runs.

    Args:
        catalog: The configuration.
        data: Whether data folders are checked, too: a plan may be for another machine.

    Raises:
        UserError: For the first argument, calibration option, claim, recommendation or data folder
            that is not what it should be.
    """
    load_claims(catalog.folder / "claims.yaml")
    load_recommendations(catalog.folder / "recommendations.yaml")
    experiments = [e for e in catalog.experiments.values() if not isinstance(e, ComputeExperiment)]
    used = {name for e in experiments for name in catalog.optimizers_of(e)}
    companions = {c.use for name in used if (c := catalog.optimizers[name].companion) is not None}
    for name in sorted(used | companions):
        spec = resolve_optimizer(catalog, name)
        key = f"{catalog.folder}/optimizers.yaml: {name}.arguments"
        check_arguments(spec["class"], spec["arguments"], key)
        _check_calibration(catalog, name)
    for name, experiment in catalog.experiments.items():
        if isinstance(experiment, ComputeExperiment):
            _check_function(experiment, catalog.place_of(name))
    if data:
        _check_data(catalog)


def _check_data(catalog: Catalog) -> None:
    learning = [
        e for e in catalog.experiments.values() if isinstance(e, TrainExperiment | FaultExperiment)
    ]
    for name in sorted({n for e in learning for n in e.datasets}):
        _check_source(catalog, name)
    for name, experiment in catalog.experiments.items():
        if isinstance(experiment, TrainExperiment) and experiment.evaluation is not None:
            _check_tasks(catalog.place_of(name), experiment.evaluation)


def _check_function(experiment: ComputeExperiment, where: str) -> None:
    path = experiment.function
    function = import_function(path, f"{where}: function")
    added = ["models"] * bool(experiment.models) + ["device"] * experiment.timed
    check_keywords(function, path, [*experiment.arguments, *added], f"{where}: arguments")


def _check_calibration(catalog: Catalog, name: str) -> None:
    entry = catalog.optimizers[name]
    if entry.calibration is None:
        return
    where = f"{catalog.folder}/optimizers.yaml: {name}.calibration"
    validate(Calibration, entry.calibration.model_dump(), where)
    if entry.recording is not None:
        recorded = catalog.optimizers[entry.recording.optimizer]
        if recorded.parameters != "matrices" or not orthogonalizes(recorded.class_):
            raise UserError(f"{where}.recording.optimizer: found '{entry.recording.optimizer}', "
                            "expected an optimizer of class "
                            "harness.optimizers.OrthogonalizedMomentum")  # fmt: skip


def _check_tasks(place: str, evaluation: Evaluation) -> None:
    where = f"{place}: evaluation"
    tasks = [task for task in evaluation.tasks if task not in HELDOUT_TASKS]
    if not tasks:
        return
    if evaluation.mirror is not None:
        mirrored_files(tasks, locate(evaluation.mirror, f"{where}.mirror"), f"{where}.mirror")
        return
    if set(tasks) <= definitions().keys():
        return
    # lm-eval's own index takes ten seconds: it is asked only for what is no single task.
    from lm_eval.tasks import TaskManager

    valid = {*TaskManager().all_tasks, *HELDOUT_TASKS}
    for task in tasks:
        if task not in valid:
            raise UserError(f"{where}.tasks: found '{task}'{closest(task, valid)}")


def _check_source(catalog: Catalog, name: str) -> None:
    source = catalog.datasets[name].source
    where = f"{catalog.folder}/datasets.yaml: {name}.source"
    if source.type in ("local", "parquet"):
        locate(source.path, f"{where}.path")
    if source.type == "torchvision_cifar10":
        locate(source.root, f"{where}.root", create=True)
