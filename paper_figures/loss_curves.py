"""Training and validation loss against steps, with the spread of the seeds."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results, Sweep
from harness.reporting.style import HEIGHT, WIDTH, colours, dashes

ORDER = 10
TITLE = "Loss over training"
CAPTION = (
    "Mean over the reporting seeds at each member's learning rate; bands span the lowest "
    "and highest seed."
)
PANELS = (("train/loss", "training loss (nats)"), ("validation/loss", "validation loss (nats)"))


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per sweep."""
    figures = {}
    for sweep in results.sweeps():
        if sweep.primary_metric is not None:
            figures[f"loss_curves.{sweep.name}"] = (sweep.experiment, _draw(sweep, results))
    return figures


def _draw(sweep: Sweep, results: Results) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT), sharey=True)
    colour, dash = colours(sweep.palette), dashes(sweep.palette)
    reporting = sweep.records[sweep.records["role"] == "reporting"]
    for ax, (metric, label) in zip(axes, PANELS, strict=True):
        rows = reporting[reporting["metric"] == metric]
        for name in sweep.members:
            _curve(ax, rows[rows[sweep.factor] == name], name, colour, dash)
        ax.set(xlabel="optimizer step", ylabel=label, yscale="log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(sweep.place, fontsize=10)
    return figure


def _curve(ax: Axes, rows: pd.DataFrame, name: str, colour: dict, dash: dict) -> None:
    spread = rows.groupby("step")["value"].agg(["mean", "min", "max"]).astype(float)
    if spread.empty:
        return
    steps = spread.index.to_numpy(dtype=int)
    # Curves often coincide: a broken line above a solid one shows both.
    ax.plot(steps, spread["mean"], label=name, color=colour[name], linewidth=1.4,
            linestyle=dash[name], zorder=2 if dash[name] == "-" else 3)  # fmt: skip
    ax.fill_between(steps, spread["min"], spread["max"], color=colour[name], alpha=0.15, lw=0)
