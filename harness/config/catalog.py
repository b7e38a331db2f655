"""Everything under ``config/`` for one scale, loaded, merged, cross-checked and frozen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.base import check_name, validate
from harness.config.dataset_schema import DatasetSpec
from harness.config.experiment_schema import (
    AnyExperiment,
    ComputeExperiment,
    ExperimentSpec,
    FaultExperiment,
    MeasureExperiment,
    Scale,
    TrainExperiment,
)
from harness.config.model_schema import ModelSpec
from harness.config.optimizer_schema import OptimizerEntry
from harness.config.yaml_file import merge, read_yaml
from harness.errors import UserError, closest


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The validated configuration of one scale.

    Attributes:
        folder: The ``config`` folder.
        scale_name: Name of the scale, e.g. ``smoke``.
        scale: Its numbers.
        optimizers: Entries of ``optimizers.yaml`` by name, variants resolved.
        models: Entries of ``models.yaml`` by name.
        datasets: Entries of ``datasets.yaml`` by name.
        experiments: The experiments of the scale by name, overlays applied.
    """

    folder: Path
    scale_name: str
    scale: Scale
    optimizers: dict[str, OptimizerEntry]
    models: dict[str, Any]
    datasets: dict[str, Any]
    experiments: dict[str, Any]

    def members_of(self, experiment: TrainExperiment | MeasureExperiment) -> list[str]:
        """Return what ``experiment`` compares: its optimizers or its models."""
        if isinstance(experiment, TrainExperiment) and experiment.compare == "models":
            return list(experiment.model_names.values())
        return self.optimizers_of(experiment)

    def models_of(self, experiment: AnyExperiment) -> list[str]:
        """Return the entries of ``models.yaml`` that ``experiment`` uses."""
        if isinstance(experiment, MeasureExperiment):
            return experiment.models
        return list(experiment.model_names)

    def place_of(self, experiment: str) -> str:
        """Return the file of an experiment, and the scale if it lays something over it."""
        return _place(self.folder, self.scale_name, self.scale, experiment)

    def optimizers_of(
        self, experiment: TrainExperiment | MeasureExperiment | FaultExperiment
    ) -> list[str]:
        """Return the optimizers of ``experiment``, each once, with ``all`` spelled out."""
        listed = experiment.optimizers
        bases = [name for name, entry in self.optimizers.items() if entry.variant_of is None]
        names: list[str] = []
        for name in [listed] if isinstance(listed, str) else listed:
            names += bases if name == "all" else [name]
        return list(dict.fromkeys(names))


def load_catalog(folder: Path, scale_name: str) -> Catalog:
    """Load and check ``folder`` for one scale.

    Raises:
        UserError: For the first mistake found, with file, key and the closest valid name.
    """
    names = [path.stem for path in (folder / "scales").glob("*.yaml")]
    if not names:
        raise UserError(f"config: found '{folder}', which has no scales; expected a folder like "
                        "config of the checkout, with scales/smoke.yaml")  # fmt: skip
    if scale_name not in names:
        raise UserError(f"scale: found '{scale_name}'{closest(scale_name, names)}")
    check_name(scale_name, f"{folder}/scales")
    scale_path = folder / "scales" / f"{scale_name}.yaml"
    scale = validate(Scale, read_yaml(scale_path), str(scale_path))
    catalog = Catalog(
        folder=folder,
        scale_name=scale_name,
        scale=scale,
        optimizers=load_optimizers(folder / "optimizers.yaml"),
        models=load_models(folder / "models.yaml"),
        datasets=_entries(folder / "datasets.yaml", DatasetSpec),
        experiments=_experiments(folder, scale_name, scale),
    )
    for name, experiment in catalog.experiments.items():
        _check_references(catalog, experiment, catalog.place_of(name))
    return catalog


def load_optimizers(path: Path) -> dict[str, OptimizerEntry]:
    """Return the entries of ``path``; a variant is its base entry with its own keys laid over.

    Raises:
        UserError: For an invalid entry or an unknown ``variant_of`` or companion.
    """
    entries = {
        name: validate(OptimizerEntry, data, f"{path}: {name}")
        for name, data in _variants(path).items()
    }
    if "all" in entries:
        raise UserError(f"{path}: found the name 'all', which means every entry; expected another")
    for name, entry in entries.items():
        if entry.companion is not None:
            _check_companion(entries, name, entry.companion.use, path)
    return entries


def load_models(path: Path) -> dict[str, Any]:
    """Return the entries of ``path``; a variant is its base entry with its own keys laid over.

    Raises:
        UserError: For an invalid entry or an unknown ``variant_of``.
    """
    models = {}
    for name, data in _variants(path).items():
        own = {key: value for key, value in data.items() if key != "variant_of"}
        models[name] = validate(ModelSpec, own, f"{path}: {name}")
    return models


def _variants(path: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of a file, each laid over the one that its ``variant_of`` names."""
    raw = _named(path)
    return {name: _laid_over_base(path, raw, name, ()) for name in raw}


def _laid_over_base(
    path: Path, raw: dict[str, Any], name: str, above: tuple[str, ...]
) -> dict[str, Any]:
    data = raw[name]
    base = data.get("variant_of")
    if base is None:
        return data
    if not isinstance(base, str) or base not in raw:
        raise UserError(f"{path}: {name}.variant_of: found {base!r}{closest(str(base), raw)}")
    if base in (name, *above):
        raise UserError(f"{path}: {name}.variant_of: '{base}' is a variant of '{name}'")
    return merge(_laid_over_base(path, raw, base, (name, *above)), data)


def _check_companion(
    entries: dict[str, OptimizerEntry], name: str, companion: str, path: Path
) -> None:
    where = f"{path}: {name}.companion: found '{companion}'"
    if companion not in entries:
        raise UserError(where + closest(companion, entries))
    if entries[companion].parameters != "all":
        raise UserError(f"{where}, expected an entry with `parameters: all`")


def _entries(path: Path, kind: Any) -> dict[str, Any]:
    return {name: validate(kind, data, f"{path}: {name}") for name, data in _named(path).items()}


def _named(path: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of a file, whose names and kind are checked before they are used."""
    raw = read_yaml(path)
    for name, data in raw.items():
        check_name(name, str(path))
        if not isinstance(data, dict):
            raise UserError(f"{path}: {name}: found {data!r}, expected a mapping")
    return raw


def _place(folder: Path, scale_name: str, scale: Scale, experiment: str) -> str:
    path = f"{folder}/experiments/{experiment}.yaml"
    overlaid = scale.experiments.get(experiment)
    return f"{path} under {folder}/scales/{scale_name}.yaml" if overlaid else path


def _experiments(folder: Path, scale_name: str, scale: Scale) -> dict[str, Any]:
    known = [path.stem for path in (folder / "experiments").glob("*.yaml")]
    experiments = {}
    for name, overlay in scale.experiments.items():
        where = f"{folder}/scales/{scale_name}.yaml: experiments"
        if name not in known:
            raise UserError(f"{where}: found '{name}'{closest(name, known)}")
        check_name(name, where)
        data = merge(_inherited(folder, scale, name, known), overlay or {})
        place = _place(folder, scale_name, scale, name)
        experiments[name] = validate(ExperimentSpec, data, place)
    return experiments


def _inherited(folder: Path, scale: Scale, name: str, known: list[str]) -> dict[str, Any]:
    """Return an experiment's file laid over the experiment, as this scale has it, that it varies.

    So what both do not say apart is equal, and equal runs are one run.
    """
    path = folder / "experiments" / f"{name}.yaml"
    data = read_yaml(path)
    base = data.pop("variant_of", None)
    if base is None:
        return data
    if base not in known:
        raise UserError(f"{path}: variant_of: found {base!r}{closest(str(base), known)}")
    inherited = read_yaml(folder / "experiments" / f"{base}.yaml")
    if "variant_of" in inherited:
        raise UserError(f"{path}: variant_of: '{base}' is itself a variant")
    return merge(merge(inherited, scale.experiments.get(base) or {}), data)


def _check_references(catalog: Catalog, experiment: AnyExperiment, where: str) -> None:
    models = catalog.models_of(experiment)
    _known(models, catalog.models, f"{where}: models")
    if isinstance(experiment, ComputeExperiment):
        return
    optimizers = catalog.optimizers_of(experiment)
    _known(optimizers, [*catalog.optimizers, "all"], f"{where}: optimizers")
    if not isinstance(experiment, FaultExperiment):
        _known([experiment.baseline], catalog.members_of(experiment), f"{where}: baseline")
    for name in optimizers:
        _check_recording(catalog, name, models)
    if not isinstance(experiment, MeasureExperiment):
        _known(experiment.datasets, catalog.datasets, f"{where}: datasets")
        _check_task(catalog, experiment, where)
    if isinstance(experiment, TrainExperiment):
        _check_budget(catalog, optimizers)


def _known(names: list[str], valid: Any, where: str) -> None:
    for name in names:
        if name not in valid:
            raise UserError(f"{where}: found '{name}'{closest(name, valid)}")


def _check_recording(catalog: Catalog, name: str, models: list[str]) -> None:
    recording = catalog.optimizers[name].recording
    if recording is None:
        return
    where = f"{catalog.folder}/optimizers.yaml: {name}.calibration.recording"
    trained = {n: e for n, e in catalog.experiments.items() if isinstance(e, TrainExperiment)}
    _known([recording.experiment], trained, f"{where}.experiment")
    experiment = trained[recording.experiment]
    _known([recording.optimizer], catalog.optimizers_of(experiment), f"{where}.optimizer")
    _known(
        models, experiment.model_names, f"{where}.experiment: models of '{recording.experiment}'"
    )
    if experiment.training.recording_interval is None:
        raise UserError(f"{where}.experiment: found '{recording.experiment}', expected an "
                        "experiment with training.recording_interval")  # fmt: skip
    if catalog.optimizers[recording.optimizer].recording is not None:
        raise UserError(f"{where}.optimizer: found '{recording.optimizer}', expected an optimizer "
                        "that is not itself calibrated on recorded matrices")  # fmt: skip


def _check_task(
    catalog: Catalog, experiment: TrainExperiment | FaultExperiment, where: str
) -> None:
    kind = {"language": "text", "images": "images"}[experiment.task]
    for name in experiment.datasets:
        if catalog.datasets[name].kind != kind:
            raise UserError(f"{where}: datasets: '{name}' holds {catalog.datasets[name].kind}, "
                            f"expected {kind} for task {experiment.task}")  # fmt: skip
    for name in experiment.model_names:
        if (catalog.models[name].family == "decoder") != (experiment.task == "language"):
            raise UserError(f"{where}: models: '{name}' is of family "
                            f"{catalog.models[name].family}, which does not fit task "
                            f"{experiment.task}")  # fmt: skip


def _check_budget(catalog: Catalog, optimizers: list[str]) -> None:
    """A comparison is only fair with the same number of trials for everybody."""
    trials = {name: len(catalog.optimizers[name].tune.lr) for name in optimizers}
    usual = max(trials.values(), key=list(trials.values()).count)
    for name, count in trials.items():
        if count != usual:
            raise UserError(f"{catalog.folder}/optimizers.yaml: {name}.tune.lr: found {count} "
                            f"learning rates, expected {usual} as for the others (equal tuning "
                            "budget)")  # fmt: skip
