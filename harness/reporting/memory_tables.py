"""Tables of the memory of training and inference, by kind of content and by part of the model."""

from collections.abc import Iterator

import pandas as pd

from harness.reporting.results import Results, with_labels
from harness.reporting.table import Table

SIZES = ("memory/largest_micro_batch", "memory/largest_batch", "memory/largest_context")
CAPTION = (
    "GB (1e9 bytes) of the device that holds most; buffers, workspace and what an allocator loses "
    "are left out."
)


def memory_tables(results: Results, experiment: str) -> Iterator[Table]:
    """Yield what fills the memory of a device, if the records have it."""
    rows = results.of(experiment)
    rows = rows[rows["metric"].str.startswith("memory/")]
    if rows.empty:
        return
    rows = with_labels(rows, "case", "part", "kind", "statistic", "devices")
    parts = rows[(rows["metric"] == "memory/of") & (rows["statistic"] == "largest")]
    yield _kinds(experiment, rows, parts)
    yield _parts(experiment, parts)


def _kinds(experiment: str, rows: pd.DataFrame, parts: pd.DataFrame) -> Table:
    kinds = _wide(parts, "kind")
    totals = rows[rows["metric"] == "memory/total"]
    columns = {"devices": _one(rows, "memory/device", "devices").astype(int)}
    columns |= {kind: kinds[kind] for kind in kinds}
    for statistic in ("largest", "mean"):
        columns[f"total_{statistic}"] = _one(
            totals[totals["statistic"] == statistic], "memory/total"
        )
    columns["share_of_device"] = _one(rows, "memory/share")
    numbers = pd.DataFrame(columns).reindex(kinds.index)
    text = numbers.map("{:.1f}".format).replace("nan", "-")
    text["devices"] = numbers["devices"].map("{:d}".format)
    text["share_of_device"] = numbers["share_of_device"].map("{:.0%}".format)
    text["largest that fits"] = [_largest(rows[rows["case"] == case]) for case in kinds.index]
    for metric in SIZES:
        numbers[metric.removeprefix("memory/")] = _one(rows, metric)
    text.columns = [str(name).replace("_", " ") for name in text.columns]
    return Table(
        name=f"memory.{experiment}",
        experiment=experiment,
        title="Memory of training and inference by kind",
        caption=f"{CAPTION} `total mean`: over all devices. `largest that fits`: all else equal.",
        numbers=numbers.reset_index(),
        text=text.reset_index(),
    )


def _parts(experiment: str, parts: pd.DataFrame) -> Table:
    wide = _wide(parts, "part")
    text = wide.map("{:.1f}".format).replace("nan", "-")
    text.columns = [str(name).replace("_", " ") for name in text.columns]
    return Table(
        name=f"memory_parts.{experiment}",
        experiment=experiment,
        title="Memory of training and inference by part",
        caption=f"{CAPTION} Activations of routing are those of the experts.",
        numbers=wide.reset_index(),
        text=text.reset_index(),
    )


def _wide(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    wide = rows.assign(value=rows["value"].astype(float)).pivot_table(
        index="case", columns=column, values="value", aggfunc="sum", sort=False
    )
    return wide.astype(float)


def _one(rows: pd.DataFrame, metric: str, column: str = "value") -> pd.Series:
    return rows[rows["metric"] == metric].set_index("case")[column].astype(float)


def _largest(rows: pd.DataFrame) -> str:
    found = rows[rows["metric"].isin(SIZES)]
    return ", ".join(
        f"{metric.removeprefix('memory/largest_').replace('_', '-')} {value:.0f}"
        for metric, value in zip(found["metric"], found["value"], strict=True)
    )
