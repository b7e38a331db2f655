"""The records of one folder and the questions that tables, figures and claims ask of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import UserError
from harness.records.statistics import Estimate, mean_over_seeds, paired_difference
from harness.records.store import load_records, load_runs

SELECTION_METRIC = "validation/loss"
# The final metric that a sweep is judged by: the first that its records have.
PRIMARY_METRICS = ("test/accuracy", "test/loss")
HIGHER_IS_BETTER = ("accuracy", "/acc", "/acc_norm", "throughput")


def higher_is_better(metric: str) -> bool:
    """Return whether a larger value of ``metric`` is the better one."""
    return metric.endswith(HIGHER_IS_BETTER)


@dataclass(frozen=True)
class Tuning:
    """How the learning rate of one optimizer was chosen.

    Attributes:
        losses: Mean validation loss by learning rate; infinite where a trial did not complete.
        best: The rate with the lowest loss; None if no trial completed.
    """

    losses: dict[float, float]
    best: float | None

    @property
    def on_edge(self) -> bool:
        """Whether the best rate is the first or last of its grid."""
        return self.best is not None and self.best in (min(self.losses), max(self.losses))


@dataclass(frozen=True)
class Sweep:
    """All records of one experiment on one model and dataset."""

    experiment: str
    model: str
    dataset: str
    title: str
    baseline: str
    optimizers: tuple[str, ...]
    records: pd.DataFrame
    runs: pd.DataFrame

    @property
    def name(self) -> str:
        """Experiment, model and dataset, for file names."""
        return f"{self.experiment}.{self.model}.{self.dataset}"

    @property
    def primary_metric(self) -> str | None:
        """The metric by which the sweep is judged; None if no run completed."""
        present = set(self.records["metric"])
        return next((metric for metric in PRIMARY_METRICS if metric in present), None)

    def final(self, metric: str, optimizer: str, role: str = "reporting") -> dict[int, float]:
        """Return the last value of ``metric`` of every completed run by seed."""
        completed = self.runs[(self.runs["status"] == "completed") & (self.runs["role"] == role)]
        rows = self.records[
            (self.records["metric"] == metric)
            & (self.records["optimizer"] == optimizer)
            & self.records["run_id"].isin(completed["run_id"])
        ].sort_values("step", na_position="first")
        last = rows.groupby("run_id").last()
        return {int(s): float(v) for s, v in zip(last["seed"], last["value"], strict=True)}

    def estimate(self, metric: str, optimizer: str) -> Estimate | None:
        """Return mean and interval of a final metric over the reporting seeds."""
        values = list(self.final(metric, optimizer).values())
        return mean_over_seeds(values) if values else None

    def difference(self, metric: str, first: str, second: str) -> Estimate | None:
        """Return the paired difference ``first - second`` of a final metric over equal seeds."""
        return paired_difference(self.final(metric, first), self.final(metric, second))

    def tuning(self, optimizer: str) -> Tuning:
        """Return how the learning rate of ``optimizer`` was chosen."""
        trials = self.runs[(self.runs["optimizer"] == optimizer) & (self.runs["role"] == "tuning")]
        found = self.records[self.records["metric"] == SELECTION_METRIC].sort_values("step")
        last = found.groupby("run_id")["value"].last()
        losses: dict[float, list[float]] = {}
        for run in trials.itertuples():
            loss = float(last[run.run_id]) if run.status == "completed" else float("inf")
            losses.setdefault(float(run.learning_rate), []).append(loss)
        means = {rate: sum(values) / len(values) for rate, values in sorted(losses.items())}
        best = min(means, key=means.__getitem__, default=None)
        return Tuning(means, None if best is None or means[best] == float("inf") else best)


class Results:
    """Records, runs and plan of one folder."""

    def __init__(self, folder: Path) -> None:
        """Read the folder.

        Raises:
            UserError: If one of its three files is missing or not what it should be.
        """
        self.folder = folder
        self.records = load_records(folder)
        self.runs = load_runs(folder)
        path = folder / "plan.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected the plan that 'snakemake' collects")
        self.plan: dict[str, Any] = json.loads(path.read_text())

    @property
    def scale(self) -> str:
        """Name of the scale that the records were made at."""
        return self.plan["scale"]

    @cached_property
    def optimizers(self) -> tuple[str, ...]:
        """All optimizers in the order of the configuration, then those only records know."""
        planned = [n for e in self.plan["experiments"].values() for n in e.get("optimizers", ())]
        recorded = sorted(set(self.records["optimizer"].dropna()))
        return tuple(dict.fromkeys([*planned, *recorded]))

    def of(self, experiment: str) -> pd.DataFrame:
        """Return the records of one experiment."""
        return self.records[self.records["experiment"] == experiment]

    def sweeps(self) -> Iterator[Sweep]:
        """Yield every train experiment on each of its models and datasets."""
        swept = self.runs.dropna(subset=["model", "dataset", "optimizer"])
        for (name, model, dataset), runs in swept.groupby(
            ["experiment", "model", "dataset"], sort=False
        ):
            records = self.records[self.records["run_id"].isin(runs["run_id"])]
            entry = self.plan["experiments"].get(name, {})
            present = set(runs["optimizer"])
            yield Sweep(
                experiment=name,
                model=model,
                dataset=dataset,
                title=entry.get("title", name),
                baseline=entry.get("baseline", ""),
                optimizers=tuple(n for n in self.optimizers if n in present),
                records=records[records["experiment"] == name],
                runs=runs,
            )


def label(records: pd.DataFrame, name: str) -> pd.Series:
    """Return one label of every record, None where it has no such label."""
    return records["labels"].map(lambda text: json.loads(text).get(name))
