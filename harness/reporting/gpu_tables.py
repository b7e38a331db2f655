"""Tables of what only a GPU can measure: two streams, fewer multiprocessors, FP8 accumulation."""

from collections.abc import Iterator

import pandas as pd

from harness.reporting.results import Results, with_labels
from harness.reporting.table import Table

PAIR = ["first", "second", "ratio"]
PRODUCT = ["shape", "precision", "sized_for"]
SUMS = ["distribution", "length"]


def gpu_tables(results: Results, experiment: str) -> Iterator[Table]:
    """Yield the tables of an experiment that measured one of the three."""
    rows = results.of(experiment)
    for metric, table in (("streams/speedup", _streams), ("gemm/throughput_share", _products),
                          ("tensor_cores/max_error", _sums)):  # fmt: skip
        if (rows["metric"] == metric).any():
            yield table(rows, experiment)
        elif (rows["metric"] == metric.split("/")[0] + "/supported").any():
            yield _unsupported(rows, experiment)


def labelled(rows: pd.DataFrame, metric: str, *names: str) -> pd.DataFrame:
    """Return the records of one metric with some of their labels as columns."""
    some = rows[rows["metric"] == metric]
    return with_labels(some, *names)


def _streams(rows: pd.DataFrame, experiment: str) -> Table:
    speedups = labelled(rows, "streams/speedup", *PAIR, "method")
    medians = speedups.pivot_table(index=PAIR, columns="method", values="value", aggfunc="median",
                                   sort=False)  # fmt: skip
    shares = labelled(rows, "streams/hidden_share", *PAIR).groupby(PAIR, sort=False)["value"]
    spread = shares.quantile([0.25, 0.5, 0.75]).unstack()
    numbers = medians.assign(hidden_share=spread[0.5], hidden_share_quartile_1=spread[0.25],
                             hidden_share_quartile_3=spread[0.75]).reset_index()  # fmt: skip
    text = numbers[PAIR].assign(
        **{
            "speed-up": numbers["measured"].map("{:.2f}".format),
            "perfect overlap": numbers["closed_form"].map("{:.2f}".format),
            "hidden": [
                f"{middle:.0%} ({low:.0%} to {high:.0%})"
                for low, middle, high in zip(numbers["hidden_share_quartile_1"],
                                             numbers["hidden_share"],
                                             numbers["hidden_share_quartile_3"], strict=True)
            ],
        }
    )  # fmt: skip
    caption = (
        "Ratio: aimed time of the second over that of the first, alone. Perfect overlap is "
        "(C + T) / max(C, T) of the measured times. Hidden: how much of the shorter one is, median "
        "and middle half of the rounds; negative if they slow each other down."
    )
    return Table(f"streams.{experiment}", experiment, "Two streams of one GPU", caption,
                 numbers.rename_axis(columns=None), text.rename_axis(columns=None))  # fmt: skip


def _products(rows: pd.DataFrame, experiment: str) -> Table:
    shares = labelled(rows, "gemm/throughput_share", *PRODUCT, "multiprocessors", "method")
    measured = shares[shares["method"] == "measured"]
    numbers = measured.pivot_table(index=PRODUCT, columns="multiprocessors", values="value",
                                   aggfunc="median", sort=False)  # fmt: skip
    numbers = numbers[sorted(numbers.columns, reverse=True)]
    closed = shares[shares["method"] == "closed_form"].set_index("multiprocessors")["value"]
    titles = {count: f"{count:g} ({closed[count]:.1%})" for count in numbers.columns}
    text = numbers.map("{:.1%}".format).rename(columns=titles).reset_index()
    caption = (
        "Throughput over that on all multiprocessors in the same round, median, by the number "
        "that products may use; in brackets its share. Kernels are sized for the whole device or, "
        "where the library can be told, for the budget."
    )
    return Table(f"multiprocessors.{experiment}", experiment,
                 "Matrix products on fewer multiprocessors", caption,
                 numbers.rename(columns=str).reset_index().rename_axis(columns=None),
                 text.rename_axis(columns=None))  # fmt: skip


def _sums(rows: pd.DataFrame, experiment: str) -> Table:
    errors = labelled(rows, "tensor_cores/max_error", *SUMS, "promotion", "method")
    errors["column"] = errors["method"] + ", " + errors["promotion"].map(_promotion)
    numbers = errors.pivot_table(index=SUMS, columns="column", values="value", sort=False)
    equal = labelled(rows, "tensor_cores/equal_to_emulation", *SUMS, "promotion")
    equal["column"] = "equal sums, " + equal["promotion"].map(_promotion)
    shares = equal.pivot_table(index=SUMS, columns="column", values="value", sort=False)
    text = pd.concat([numbers.map("{:.2e}".format), shares.map("{:.1%}".format)], axis=1)
    caption = (
        "Largest error over the largest of the exact sums of E4M3 products, mean over seeds; "
        "'library': without fast accumulation, whatever the library does. Equal sums: share that "
        "are the same float32 number on tensor cores and emulated."
    )
    return Table(f"tensor_cores.{experiment}", experiment,
                 "Accumulation of FP8 tensor cores", caption,
                 pd.concat([numbers, shares], axis=1).reset_index().rename_axis(columns=None),
                 text.reset_index().rename_axis(columns=None))  # fmt: skip


def _promotion(promotion: int | str) -> str:
    names = {"none": "no promotion", "library": "library"}
    return names.get(str(promotion), f"promoted every {promotion}")


def _unsupported(rows: pd.DataFrame, experiment: str) -> Table:
    metric = rows.loc[rows["metric"].str.endswith("/supported"), "metric"].iloc[0]
    numbers = labelled(rows, metric, "what", "reason")[["what", "reason"]]
    return Table(f"unsupported.{experiment}", experiment, "Not measured here",
                 "What this device, driver or torch does not have.", numbers, numbers)  # fmt: skip
