"""Throughput of matrix products on fewer multiprocessors, against their share."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from harness.reporting.gpu_tables import PRODUCT, labelled
from harness.reporting.results import Results
from harness.reporting.style import HEIGHT, WIDTH, colours, dashes

ORDER = 85
TITLE = "Matrix products on fewer multiprocessors"
CAPTION = (
    "Throughput of the products of DeepSeek-V3's layers over that on all multiprocessors in the "
    "same round, by the share of multiprocessors that they may use: median and middle half of the "
    "rounds. Grey: throughput in proportion to multiprocessors. Kernels sized for the whole device "
    "run in one more wave where their blocks no longer fit."
)
METRIC = "gemm/throughput_share"


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that measured products on fewer multiprocessors."""
    return {
        f"multiprocessor_budget.{experiment}": (experiment, _draw(records))
        for experiment, records in results.with_metric(METRIC)
    }


def _draw(records: pd.DataFrame) -> Figure:
    rows = labelled(records, METRIC, *PRODUCT, "multiprocessors", "method")
    closed = rows[rows["method"] == "closed_form"].set_index("multiprocessors")["value"]
    rows = rows[rows["method"] == "measured"]
    rows = rows.assign(share=rows["multiprocessors"].map(closed).astype(float))
    shapes = list(dict.fromkeys(rows["shape"]))
    colour, dash = colours(shapes), dashes(shapes)
    panels = list(rows.groupby(["precision", "sized_for"], sort=False))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, HEIGHT), sharex=True, sharey=True, squeeze=False
    )
    for ax, ((precision, sized_for), some) in zip(axes.flat, panels, strict=True):
        ends = [closed.min(), closed.max()]
        ax.plot(ends, ends, color="0.6", linewidth=1.2)
        for shape, own in some.groupby("shape", sort=False):
            spread = own.groupby("share")["value"].quantile([0.25, 0.5, 0.75]).unstack()
            ax.plot(spread.index, spread[0.5], color=colour[shape], linestyle=dash[shape],
                    marker="o", markersize=4, linewidth=1.4,
                    label=str(shape).replace("_", " "))  # fmt: skip
            ax.fill_between(spread.index, spread[0.25], spread[0.75], color=colour[shape],
                            alpha=0.15, lw=0)  # fmt: skip
        ax.set(title=f"{precision}, kernels for\nthe {sized_for}", xlabel="share of SMs")
        ax.xaxis.set_major_formatter("{x:.0%}")
        ax.yaxis.set_major_formatter("{x:.0%}")
    axes[0, 0].set(ylabel="throughput / all SMs'")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  frameon=False)  # fmt: skip
    return figure
