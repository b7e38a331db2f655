"""What two streams of one GPU hide of each other, against perfect overlap."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.gpu_tables import PAIR, labelled
from harness.reporting.results import Results
from harness.reporting.style import HEIGHT, WIDTH, colours

ORDER = 83
TITLE = "Overlap of two streams on one GPU"
CAPTION = (
    "Speed-up of two kinds of work on two streams over one after the other, by how long the second "
    "takes alone: median and middle half of the rounds. Dashed: perfect overlap, "
    "(C + T) / max(C, T) of the measured times. Copies stand in for communication; those within "
    "the GPU share its memory bandwidth with the other stream."
)
METRIC = "streams/speedup"


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that measured two streams."""
    return {
        f"stream_overlap.{experiment}": (experiment, _draw(records))
        for experiment, records in results.with_metric(METRIC)
    }


def _draw(records: pd.DataFrame) -> Figure:
    rows = labelled(records, METRIC, *PAIR, "method")
    panels = list(rows.groupby(["first", "second"], sort=False))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, HEIGHT), sharex=True, sharey=True, squeeze=False
    )
    for ax, ((first, second), some) in zip(axes.flat, panels, strict=True):
        _panel(ax, some)
        ax.set(xlabel="time of the second / first",
               title=f"{first} and\n{second}".replace("_", " "))  # fmt: skip
    axes[0, 0].set(ylabel="speed-up")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  frameon=False)  # fmt: skip
    return figure


def _panel(ax: Axes, rows: pd.DataFrame) -> None:
    spread = rows.groupby(["method", "ratio"])["value"].quantile([0.25, 0.5, 0.75]).unstack()
    colour = colours(["measured"])["measured"]
    limit, found = spread.loc["closed_form"], spread.loc["measured"]
    ax.plot(limit.index, limit[0.5], color="0.4", linestyle=(0, (4, 2)), linewidth=1.2,
            label="perfect overlap")  # fmt: skip
    ax.plot(found.index, found[0.5], color=colour, marker="o", markersize=4, linewidth=1.4,
            label="measured")  # fmt: skip
    ax.fill_between(found.index, found[0.25], found[0.75], color=colour, alpha=0.15, lw=0)
    ax.axhline(1, color="0.7", linewidth=0.8)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
