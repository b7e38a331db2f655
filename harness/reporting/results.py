"""The records of one folder and the questions that tables, figures and claims ask of them."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import UserError
from harness.files import read_json
from harness.records.statistics import Estimate, mean_over_seeds, paired_difference
from harness.records.store import load_records, load_runs

SELECTION_METRIC = "validation/loss"
# The final metric that a sweep is judged by: the first that its records have.
PRIMARY_METRICS = ("test/accuracy", "test/loss")
HIGHER_IS_BETTER = ("accuracy", "/acc", "/acc_norm", "/chrf", "throughput")


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
    """All records of one experiment on one dataset: optimizers on a model, or the reverse.

    Attributes:
        factor: What is compared, ``optimizer`` or ``model``; ``members`` are its values.
        fixed: The value of the other one.
        baseline: The member that differences are taken against.
        palette: The names that share colours: all optimizers, or the members.
    """

    experiment: str
    factor: str
    fixed: str
    dataset: str
    title: str
    baseline: str
    members: tuple[str, ...]
    palette: tuple[str, ...]
    records: pd.DataFrame
    runs: pd.DataFrame

    @property
    def name(self) -> str:
        """Experiment, what is fixed, and dataset, for file names."""
        return f"{self.experiment}.{self.fixed}.{self.dataset}"

    @property
    def place(self) -> str:
        """What is fixed and the dataset, for titles."""
        return f"{self.fixed} on {self.dataset}"

    @property
    def primary_metric(self) -> str | None:
        """The metric by which the sweep is judged; None if no run completed."""
        present = set(self.records["metric"])
        return next((metric for metric in PRIMARY_METRICS if metric in present), None)

    def runs_of(self, member: str, role: str | None = None) -> pd.DataFrame:
        """Return the runs of a member, of one role or of all."""
        rows = self.runs[self.runs[self.factor] == member]
        return rows if role is None else rows[rows["role"] == role]

    def final(self, metric: str, member: str, role: str = "reporting") -> dict[int, float]:
        """Return the last value of ``metric`` of every completed run by seed."""
        return dict(self._finals.get((metric, member, role), {}))

    @cached_property
    def _finals(self) -> dict[tuple[str, str, str], dict[int, float]]:
        """Last values of completed runs by seed, for each metric, member and role."""
        ordered = self.records.sort_values("step", na_position="first", kind="stable")
        last: dict[str, dict[str, float]] = defaultdict(dict)
        for (run_id, metric), value in (
            ordered.groupby(["run_id", "metric"])["value"].last().items()
        ):
            last[run_id][metric] = float(value)
        finals: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
        completed = self.runs[self.runs["status"] == "completed"].sort_values("run_id")
        columns = completed[["run_id", self.factor, "role", "seed"]]
        for run_id, member, role, seed in columns.itertuples(index=False):
            for metric, value in last[run_id].items():
                finals[metric, member, role][int(seed)] = value
        return finals

    def estimate(self, metric: str, member: str) -> Estimate | None:
        """Return mean and interval of a final metric over the reporting seeds."""
        values = list(self.final(metric, member).values())
        return mean_over_seeds(values) if values else None

    def difference(self, metric: str, first: str, second: str) -> Estimate | None:
        """Return the paired difference ``first - second`` of a final metric over equal seeds."""
        return paired_difference(self.final(metric, first), self.final(metric, second))

    def relative_difference(self, metric: str, first: str, second: str) -> Estimate | None:
        """Return ``first / second - 1`` of a final metric over equal seeds."""
        above, below = self.final(metric, first), self.final(metric, second)
        ratios = [above[seed] / below[seed] - 1 for seed in above if seed in below]
        return mean_over_seeds(ratios) if ratios else None

    def tuning(self, member: str) -> Tuning:
        """Return how the learning rate of ``member`` was chosen; no losses if it was given."""
        found = self.records[self.records["metric"] == SELECTION_METRIC].sort_values("step")
        last = found.groupby("run_id")["value"].last()
        losses: dict[float, list[float]] = {}
        for run in self.runs_of(member, "tuning").itertuples():
            loss = float(last[run.run_id]) if run.status == "completed" else float("inf")
            losses.setdefault(float(run.learning_rate), []).append(loss)
        means = {rate: sum(values) / len(values) for rate, values in sorted(losses.items())}
        best = min(means, key=means.__getitem__, default=None)
        return Tuning(means, None if best is None or means[best] == float("inf") else best)

    def learning_rate(self, member: str) -> float | None:
        """Return the rate of the reported runs of ``member``; None if there are none."""
        rates = self.runs_of(member, "reporting")["learning_rate"].dropna()
        return None if rates.empty else float(rates.iloc[0])


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
        self.plan: dict[str, Any] = read_json(path)

    @property
    def scale(self) -> str:
        """Name of the scale that the records were made at."""
        return self.plan["scale"]

    @property
    def missing(self) -> dict[str, list[str]]:
        """Names of the jobs without a result, by experiment or stage; none in a whole scale."""
        return self.plan.get("missing", {})

    @cached_property
    def optimizers(self) -> tuple[str, ...]:
        """All optimizers in the order of the configuration, then those only records know."""
        planned = [n for e in self.plan["experiments"].values() for n in e.get("optimizers", ())]
        recorded = sorted(set(self.records["optimizer"].dropna()))
        return tuple(dict.fromkeys([*planned, *recorded]))

    def of(self, experiment: str) -> pd.DataFrame:
        """Return the records of one experiment."""
        return self.records[self.records["experiment"] == experiment]

    def with_metric(self, metric: str) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield every experiment that has records of ``metric``, and those records."""
        for experiment in self.plan["experiments"]:
            records = self.of(experiment)
            records = records[records["metric"] == metric]
            if not records.empty:
                yield experiment, records

    def labelled(self, metric: str, *names: str) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield every experiment that has records of ``metric``, and all of its records.

        Some of their labels are columns, and values are floats.
        """
        for experiment, _ in self.with_metric(metric):
            records = with_labels(self.of(experiment), *names)
            yield experiment, records.assign(value=records["value"].astype(float))

    def sweeps(self) -> Iterator[Sweep]:
        """Yield every train experiment on each of its datasets, and models or optimizers."""
        yield from self._sweeps

    @cached_property
    def _sweeps(self) -> tuple[Sweep, ...]:
        return tuple(self._find_sweeps())

    def _find_sweeps(self) -> Iterator[Sweep]:
        swept = self.runs.dropna(subset=["model", "dataset", "optimizer"])
        for name, rows in swept.groupby("experiment", sort=False):
            entry = self.plan["experiments"].get(name, {})
            by_model = entry.get("compare") == "models"
            factor, other = ("model", "optimizer") if by_model else ("optimizer", "model")
            palette = tuple(entry["models"].values()) if by_model else self.optimizers
            if by_model:
                rows = rows.assign(model=rows["model"].replace(entry["models"]))
            for (fixed, dataset), runs in rows.groupby([other, "dataset"], sort=False):
                records = self.records[self.records["run_id"].isin(runs["run_id"])]
                if by_model:
                    records = records.assign(model=records["model"].replace(entry["models"]))
                present = set(runs[factor])
                yield Sweep(
                    experiment=name,
                    factor=factor,
                    fixed=fixed,
                    dataset=dataset,
                    title=entry.get("title", name),
                    baseline=entry.get("baseline", ""),
                    members=tuple(n for n in palette if n in present),
                    palette=palette,
                    records=records[records["experiment"] == name],
                    runs=runs,
                )


def label(records: pd.DataFrame, name: str) -> pd.Series:
    """Return one label of every record, None where it has no such label."""
    return records["labels"].map(lambda text: json.loads(text).get(name))


def with_labels(records: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Return records with some of their labels as columns."""
    return records.assign(**{name: label(records, name) for name in names})
