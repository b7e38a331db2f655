"""Tables as CSV (plain numbers), Markdown and LaTeX (rounded, with intervals)."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from harness.files import write_atomically
from harness.records.statistics import Estimate
from harness.reporting.closed_form_tables import closed_form_tables
from harness.reporting.coefficient_tables import (
    calibration_tables,
    precision_tables,
    shape_tables,
)
from harness.reporting.feature_tables import acceptance_tables, decode_tables, feature_tables
from harness.reporting.gpu_tables import gpu_tables
from harness.reporting.incast_tables import incast_tables
from harness.reporting.memory_tables import memory_tables
from harness.reporting.results import Results, Sweep, higher_is_better, label
from harness.reporting.robustness_tables import checksum_tables, fault_tables
from harness.reporting.table import Table, interval
from harness.reporting.throughput_tables import throughput_tables

MILLI = 1000.0


def make_tables(results: Results) -> Iterator[Table]:
    """Yield every table that the records have the numbers for."""
    for sweep in results.sweeps():
        yield _sweep_table(sweep)
        if any(metric.startswith("lm_eval/") for metric in sweep.records["metric"]):
            yield _task_table(sweep)
        yield from precision_tables(sweep)
        yield from feature_tables(sweep)
        yield from acceptance_tables(sweep)
        yield from throughput_tables(sweep)
    for experiment, entry in results.plan["experiments"].items():
        if entry["kind"] == "measure":
            yield from _step_tables(results, experiment, entry["baseline"])
        if entry["kind"] == "faults":
            yield from fault_tables(results, experiment)
        if entry["kind"] == "compute":
            yield from shape_tables(results, experiment)
            yield from decode_tables(results, experiment)
            yield from closed_form_tables(results, experiment)
            yield from memory_tables(results, experiment)
            yield from checksum_tables(results, experiment)
            yield from incast_tables(results, experiment)
            yield from gpu_tables(results, experiment)
    yield from calibration_tables(results)


def write_tables(records: Path, output: Path) -> list[Path]:
    """Write every table of a folder of records in three formats and return the Markdown files."""
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for table in make_tables(Results(records)):
        markdown = (
            f"**{table.title}**\n\n{table.caption}\n\n{table.text.to_markdown(index=False)}\n"
        )
        formats = {"csv": table.numbers.to_csv(index=False), "md": markdown, "tex": _latex(table)}
        for suffix, content in formats.items():
            write_atomically(output / f"{table.name}.{suffix}", content.encode())
        written.append(output / f"{table.name}.md")
    return written


def _latex(table: Table) -> str:
    escaped = table.text.map(_escape).rename(columns=_escape)
    return escaped.to_latex(index=False, caption=_escape(table.caption), label=f"tab:{table.name}")


def _escape(text: object) -> str:
    replaced = str(text).replace("\\", r"\textbackslash{}")
    for character in "&%$#_{}":
        replaced = replaced.replace(character, f"\\{character}")
    return replaced.replace("±", r"$\pm$").replace("†", r"$\dagger$")


def evidence(difference: Estimate | None, metric: str) -> str:
    """Return in words whether a paired difference speaks for its first side."""
    if difference is None:
        return "-"
    if not difference.has_spread or difference.low <= 0 <= difference.high:
        return "unresolved"
    better = (difference.low > 0) == higher_is_better(metric)
    return "better" if better else "worse"


def _sweep_table(sweep: Sweep) -> Table:
    metric = sweep.primary_metric
    numbers, text = [], []
    for name in sweep.members:
        tuning, used = sweep.tuning(name), sweep.learning_rate(name)
        runs, all_runs = sweep.runs_of(name, "reporting"), sweep.runs_of(name)
        ended = int((all_runs["status"] != "completed").sum())
        score = sweep.estimate(metric, name) if metric else None
        loss = sweep.estimate("validation/loss", name)
        difference = None
        if metric and name != sweep.baseline:
            difference = sweep.difference(metric, name, sweep.baseline)
        step = sweep.estimate("time/step", name)
        seeds = sorted(int(seed) for seed in runs["seed"])
        numbers.append({
            sweep.factor: name,
            "learning_rate": used,
            "on_edge_of_grid": tuning.on_edge,
            "trials": len(tuning.losses),
            "seeds": " ".join(map(str, seeds)),
            "n": score.count if score else 0,
            metric or "score": score.mean if score else None,
            "low": score.low if score else None,
            "high": score.high if score else None,
            "validation/loss": loss.mean if loss else None,
            "difference": difference.mean if difference else None,
            "difference_low": difference.low if difference else None,
            "difference_high": difference.high if difference else None,
            "not_completed": ended,
            "seconds_per_step": step.mean if step else None,
        })  # fmt: skip
        rate = "none" if used is None else f"{used:g}{'†' if tuning.on_edge else ''}"
        text.append({
            sweep.factor: name,
            "learning rate": rate,
            f"{metric} (n = {score.count if score else 0})": interval(score, 4),
            "validation/loss": interval(loss, 4),
            f"minus {sweep.baseline}": interval(difference, 4, "+"),
            "evidence": evidence(difference, metric) if metric else "-",
            "not completed": f"{ended} of {len(all_runs)}",
            "ms/step": f"{step.mean * MILLI:.1f}" if step else "-",
        })  # fmt: skip
    frame = pd.DataFrame(text)
    # Members may have different counts of completed seeds; one column holds them all.
    scores = [column for column in frame.columns if column.startswith(f"{metric} (")]
    if len(scores) > 1:
        merged = frame[scores].bfill(axis=1).iloc[:, 0]
        counts = pd.Series([row["n"] for row in numbers]).map(lambda n: f" (n = {n})")
        frame.insert(2, str(metric), merged + counts)
        frame = frame.drop(columns=scores)
    return Table(
        name=f"sweep.{sweep.name}",
        experiment=sweep.experiment,
        title=f"{sweep.title}: {sweep.place}",
        caption=(
            f"{_rates(sweep)}: mean ± half of the 95 % interval. Differences to {sweep.baseline} "
            "are paired by seed; 'unresolved' means that the interval contains zero. † best rate "
            "on the edge of its grid."
        ),
        numbers=pd.DataFrame(numbers),
        text=frame,
    )


def _rates(sweep: Sweep) -> str:
    if (sweep.runs["role"] == "tuning").any():
        return "Learning rates chosen on tuning seeds, scores on fresh seeds"
    return "One learning rate for all, scores on several seeds"


def _task_table(sweep: Sweep) -> Table:
    present = sweep.records.loc[sweep.records["metric"].str.startswith("lm_eval/"), "metric"]
    metrics = [m for m in dict.fromkeys(present) if not m.endswith("_stderr")]
    numbers, text = [], []
    for name in sweep.members:
        estimates = {metric: sweep.estimate(metric, name) for metric in metrics}
        found = [e for e in estimates.values() if e]
        row = {sweep.factor: name, "n": found[0].count if found else 0}
        numbers.append(row | {m: e.mean if e else None for m, e in estimates.items()})
        text.append(row | {m.removeprefix("lm_eval/"): interval(e, 3)
                           for m, e in estimates.items()})  # fmt: skip
    samples = label(sweep.records[sweep.records["metric"].isin(metrics)], "samples").dropna()
    fewest, most = int(samples.min()), int(samples.max())
    documents = f"{most}" if fewest == most else f"{fewest} to {most}"
    return Table(
        name=f"tasks.{sweep.name}",
        experiment=sweep.experiment,
        title=f"Zero-shot tasks after training: {sweep.place}",
        caption=(
            f"lm-eval, {documents} documents per task; mean ± half of the 95 % interval over n "
            "training seeds."
        ),
        numbers=pd.DataFrame(numbers),
        text=pd.DataFrame(text),
    )


def step_ratios(records: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return time over the baseline's time in the same round (rounds x optimizers)."""
    times = records.assign(round=label(records, "round")).pivot_table(
        index="round", columns="optimizer", values="value", sort=False
    )
    return times.div(times[baseline], axis=0)


def _step_tables(results: Results, experiment: str, baseline: str) -> Iterator[Table]:
    rows = results.of(experiment)
    for model, records in rows.groupby("model", sort=False):
        ratios = step_ratios(records, baseline)
        median = records.groupby("optimizer", sort=False)["value"].median() * MILLI
        quantiles = ratios.quantile([0.25, 0.5, 0.75]).T
        numbers = pd.DataFrame({
            "optimizer": quantiles.index,
            "milliseconds": median[quantiles.index].to_numpy(dtype=float),
            "ratio": quantiles[0.5].to_numpy(dtype=float),
            "ratio_quartile_1": quantiles[0.25].to_numpy(dtype=float),
            "ratio_quartile_3": quantiles[0.75].to_numpy(dtype=float),
            "rounds": len(ratios),
        })  # fmt: skip
        text = pd.DataFrame({
            "optimizer": numbers["optimizer"],
            f"time / {baseline}'s": numbers["ratio"].map("{:.2f}".format),
            "middle half of the rounds": [
                f"{low:.2f} to {high:.2f}"
                for low, high in zip(numbers["ratio_quartile_1"], numbers["ratio_quartile_3"],
                                     strict=True)
            ],
            "median ms on this machine": numbers["milliseconds"].map("{:.2f}".format),
        })  # fmt: skip
        yield Table(
            name=f"step_time.{model}",
            experiment=experiment,
            title=f"Time of one optimizer step: {model}",
            caption=(
                f"All optimizers in turn in one process, {len(ratios)} rounds; ratios within a "
                "round."
            ),
            numbers=numbers,
            text=text,
        )
