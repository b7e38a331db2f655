"""Checks that need more than the configuration files: classes, their arguments, data folders."""

import re
from importlib.util import find_spec
from pathlib import Path

from harness.config.base import validate
from harness.config.catalog import Catalog
from harness.config.experiment_schema import ComputeExperiment, TrainExperiment
from harness.data.locations import locate
from harness.errors import UserError, closest
from harness.evaluation.heldout_tasks import HELDOUT_TASKS
from harness.optimizers import check_arguments, orthogonalizes
from harness.optimizers.calibration import Calibration
from harness.plan.resolve import resolve_optimizer

_TASK = re.compile(r"^task: *[\"']?(\w+)", re.MULTILINE)


def verify(catalog: Catalog) -> None:
    """Check what the experiments of the scale will use, before anything runs.

    Raises:
        UserError: For the first optimizer argument, calibration option or data folder that is
            not what it should be.
    """
    experiments = [e for e in catalog.experiments.values() if not isinstance(e, ComputeExperiment)]
    for name in sorted({n for e in experiments for n in catalog.optimizers_of(e)}):
        spec = resolve_optimizer(catalog, name)
        key = f"{catalog.folder}/optimizers.yaml: {name}.arguments"
        check_arguments(spec["class"], spec["arguments"], key)
        _check_calibration(catalog, name)
    trained = [e for e in experiments if isinstance(e, TrainExperiment)]
    for name in sorted({n for e in trained for n in e.datasets}):
        _check_source(catalog, name)
    for name, experiment in catalog.experiments.items():
        if isinstance(experiment, TrainExperiment) and experiment.evaluation is not None:
            _check_tasks(catalog, name, experiment.evaluation.tasks)


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


def _check_tasks(catalog: Catalog, name: str, tasks: list[str]) -> None:
    if set(tasks) <= set(HELDOUT_TASKS):
        return
    if set(tasks) <= {*HELDOUT_TASKS, *_declared_tasks()}:
        return
    # lm-eval's own index takes ten seconds and more: it is asked only when a name looks wrong.
    from lm_eval.tasks import TaskManager

    valid = {*TaskManager().all_tasks, *HELDOUT_TASKS}
    for task in tasks:
        if task not in valid:
            raise UserError(f"{catalog.folder}/experiments/{name}.yaml: evaluation.tasks: found "
                            f"'{task}'{closest(task, valid)}")  # fmt: skip


def _declared_tasks() -> set[str]:
    """Return the names that lm-eval's task files declare, without parsing them."""
    package = find_spec("lm_eval")
    assert package is not None
    assert package.origin is not None
    files = (Path(package.origin).parent / "tasks").rglob("*.yaml")
    return {name for file in files for name in _TASK.findall(file.read_text(errors="replace"))}


def _check_source(catalog: Catalog, name: str) -> None:
    source = catalog.datasets[name].source
    where = f"{catalog.folder}/datasets.yaml: {name}.source"
    if source.type in ("local", "parquet"):
        locate(source.path, f"{where}.path")
    if source.type == "torchvision_cifar10":
        locate(source.root, f"{where}.root", create=True)
