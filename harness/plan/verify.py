"""Checks that need more than the configuration files: classes, their arguments, data folders."""

from harness.config.catalog import Catalog
from harness.config.experiment_schema import ComputeExperiment, TrainExperiment
from harness.data.locations import locate
from harness.optimizers import check_arguments
from harness.plan.resolve import resolve_optimizer


def verify(catalog: Catalog) -> None:
    """Check what the experiments of the scale will use, before anything runs.

    Raises:
        UserError: For the first optimizer argument or data folder that does not exist.
    """
    experiments = [e for e in catalog.experiments.values() if not isinstance(e, ComputeExperiment)]
    for name in sorted({n for e in experiments for n in catalog.optimizers_of(e)}):
        spec = resolve_optimizer(catalog, name)
        key = f"{catalog.folder}/optimizers.yaml: {name}.arguments"
        check_arguments(spec["class"], spec["arguments"], key)
    trained = [e for e in experiments if isinstance(e, TrainExperiment)]
    for name in sorted({n for e in trained for n in e.datasets}):
        _check_source(catalog, name)


def _check_source(catalog: Catalog, name: str) -> None:
    source = catalog.datasets[name].source
    where = f"{catalog.folder}/datasets.yaml: {name}.source"
    if source.type in ("local", "parquet"):
        locate(source.path, f"{where}.path")
    if source.type == "torchvision_cifar10":
        locate(source.root, f"{where}.root", create=True)
