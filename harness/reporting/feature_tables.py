"""Tables of what models cost and how their features behave, beside the loss that they reach."""

from collections.abc import Iterator

import pandas as pd

from harness.records.statistics import Estimate
from harness.reporting.results import Results, Sweep, label
from harness.reporting.table import Table, interval

# Metric, column, decimals.
COLUMNS = (
    ("parameters", "parameters", 0),
    ("memory/cache_per_token", "cache (B/token)", 0),
    ("train/moe/max_violation", "MaxVio", 3),
    ("train/moe/load_entropy", "entropy of the load", 3),
    ("train/moe/dead_experts", "dead experts", 3),
    ("train/moe/dropped_tokens", "dropped tokens", 3),
    ("mtp/draft_overhead", "draft overhead", 3),
    ("mtp/speedup", "speed-up", 2),
    ("mtp/speedup_model", "(1 + p) / (1 + c)", 2),
)
ACCEPTANCE = "mtp/acceptance"


def feature_tables(sweep: Sweep) -> Iterator[Table]:
    """Yield the table of a sweep over models, if they differ in anything that was counted."""
    if sweep.factor != "model":
        return
    present = set(sweep.records["metric"])
    columns = [column for column in COLUMNS if column[0] in present]
    estimates = {
        (name, metric): sweep.estimate(metric, name)
        for name in sweep.members
        for metric, _, _ in columns
    }
    told_apart = [
        column for column in columns
        if len({_mean(estimates[name, column[0]]) for name in sweep.members}) > 1
    ]  # fmt: skip
    if not told_apart:
        return
    numbers = pd.DataFrame([
        {"model": name} | {metric: _mean(estimates[name, metric]) for metric, _, _ in told_apart}
        for name in sweep.members
    ])  # fmt: skip
    text = pd.DataFrame([
        {"model": name} | {title: _text(estimates[name, metric], digits)
                           for metric, title, digits in told_apart}
        for name in sweep.members
    ])  # fmt: skip
    yield Table(
        name=f"features.{sweep.name}",
        experiment=sweep.experiment,
        title=f"What the models cost and how they behave: {sweep.place}",
        caption=(
            "Mean ± half of the 95 % interval over the reporting seeds, at the end of training. "
            "Caches in bfloat16; loads are means over layers."
        ),
        numbers=numbers,
        text=text,
    )


def acceptance_tables(sweep: Sweep) -> Iterator[Table]:
    """Yield how often drafted tokens were accepted, by position and way of choosing."""
    rows = sweep.records[sweep.records["metric"] == ACCEPTANCE]
    if rows.empty:
        return
    rows = rows.assign(position=label(rows, "position"), mode=label(rows, "mode"))
    groups = rows.groupby([sweep.factor, "mode", "position"], sort=False)["value"]
    numbers = groups.agg(["mean", "min", "max", "count"]).reset_index()
    text = numbers[[sweep.factor, "mode", "position"]].assign(
        acceptance=numbers["mean"].map("{:.3f}".format),
        seeds=[f"{low:.3f} to {high:.3f} (n = {n})" for low, high, n in
               zip(numbers["min"], numbers["max"], numbers["count"], strict=True)],
    )  # fmt: skip
    yield Table(
        name=f"acceptance.{sweep.name}",
        experiment=sweep.experiment,
        title=f"Acceptance of drafted tokens: {sweep.place}",
        caption=(
            "Share of drafted tokens that the main model accepts after held-out prompts, by their "
            "position after the last certain one; range over the seeds."
        ),
        numbers=numbers,
        text=text,
    )


def decode_tables(results: Results, experiment: str) -> Iterator[Table]:
    """Yield time and memory of decoding by kind of attention."""
    rows = results.of(experiment)
    times = rows[rows["metric"] == "decode/time_per_token"]
    if times.empty:
        return
    times = times.assign(attention=label(times, "attention"), context=label(times, "context"))
    wide = times.pivot_table(index="attention", columns="context", values="value",
                             aggfunc="median", sort=False).astype(float) * 1000  # fmt: skip
    caches = rows[rows["metric"] == "decode/cache_bytes_per_token"]
    cache = caches.assign(attention=label(caches, "attention")).set_index("attention")["value"]
    numbers = wide.rename(columns=lambda context: f"milliseconds_{context}").reset_index()
    numbers.insert(1, "cache_bytes_per_token", cache[numbers["attention"]].to_numpy(dtype=float))
    text = pd.DataFrame({"attention": wide.index}).assign(
        **{"cache (B/token)": [f"{value:g}" for value in numbers["cache_bytes_per_token"]]},
        **{f"ms/step at {c}": wide[c].map("{:.3f}".format).to_numpy() for c in wide},
    )
    yield Table(
        name=f"decode_speed.{experiment}",
        experiment=experiment,
        title="Time of one decoding step",
        caption="Median over the rounds on this machine; ratios within a round are in the figure.",
        numbers=numbers,
        text=text,
    )


def _mean(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.mean


def _text(estimate: Estimate | None, digits: int) -> str:
    if estimate is not None and digits == 0:
        return f"{estimate.mean:,.0f}"
    return interval(estimate, digits)
