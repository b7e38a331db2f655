"""The error of FP8 dot products as tensor cores compute them, beside its emulation."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from harness.reporting.gpu_tables import SUMS, labelled
from harness.reporting.results import Results
from harness.reporting.style import HEIGHT, WIDTH, colours

ORDER = 72
TITLE = "Error of FP8 dot products, measured"
CAPTION = (
    "Largest error over the largest of the exact sums of E4M3 products on this GPU's tensor cores "
    "(lines) and emulated with 13 fraction bits on the same operands (crosses), mean over seeds. "
    "'No promotion': fast accumulation; 'library': without it; 'promoted': products of 128 "
    "elements, added in float32. Both operands have the distribution of the panel."
)
METRIC = "tensor_cores/max_error"
NAMES = {"none": "no promotion", "library": "library", "128": "promoted every 128"}
MARKERS = {"none": "o", "library": "^", "128": "s"}


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that measured accumulation."""
    return {
        f"tensor_core_accumulation.{experiment}": (experiment, _draw(records))
        for experiment, records in results.with_metric(METRIC)
    }


def _draw(records: pd.DataFrame) -> Figure:
    rows = labelled(records, METRIC, *SUMS, "promotion", "method")
    rows["promotion"] = rows["promotion"].map(str)
    # An exact sum has no place on a logarithmic axis.
    panels = list(rows[rows["value"] > 0].groupby("distribution", sort=False))
    colour = colours(list(NAMES))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, HEIGHT), sharex=True, sharey=True, squeeze=False
    )
    for ax, (distribution, some) in zip(axes.flat, panels, strict=True):
        for (promotion, method), own in some.groupby(["promotion", "method"], sort=False):
            means = own.groupby("length")["value"].mean()
            measured = method == "measured"
            style: dict[str, Any] = (
                {"marker": MARKERS[promotion], "markersize": 4, "linewidth": 1.4,
                 "label": NAMES[promotion]}
                if measured
                else {"marker": "x", "markersize": 8, "linestyle": ""}
            )  # fmt: skip
            ax.plot(means.index.to_numpy(dtype=int), means, color=colour[promotion], **style)
        ax.plot([], [], "x", color="0.3", markersize=8, label="emulated")
        ax.set(xlabel="K", title=str(distribution), yscale="log")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    axes[0, 0].set(ylabel="largest relative error")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    return figure
