"""Failures of jobs by their number of devices, and what is left of their time."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results
from harness.reporting.style import WIDTH, colours, dashes

ORDER = 88
TITLE = "Failures by the number of devices"
CAPTION = (
    "Lines: closed form; dots: simulated device by device, one for each seed. No rate is "
    "published: all of them are assumptions. Left: probability that any device fails, by that of "
    "one device. Middle: share of time that is work that lasts, with the best interval between "
    "checkpoints, by mean hours until a device fails; the recovery that takes longest. Right: the "
    "same for the most devices if the interval is not the best."
)
PROBABILITY, GOODPUT = "failures/probability", "failures/goodput"
LABELS = ("devices", "per_device", "method", "lifetime", "recovery", "interval", "over_best")


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment on failures."""
    figures = {}
    for experiment, rows in results.labelled(PROBABILITY, *LABELS):
        figures[f"failures.{experiment}"] = (experiment, _draw(rows))
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(WIDTH, 3.0))
    _lines(left, rows[rows["metric"] == PROBABILITY], "devices", "per_device", "p = {:g}")
    left.set(xscale="log", xlabel="devices", ylabel="probability of a failure")
    kept = rows[rows["metric"] == GOODPUT]
    slowest = kept.groupby("recovery")["value"].mean().idxmin()
    best = kept[(kept["interval"] == "exact") & (kept["recovery"] == slowest)]
    _lines(middle, best, "devices", "lifetime", "{:,.0f} h")
    middle.set(xscale="log", xlabel="devices", ylabel="goodput", ylim=(0, 1.02))
    _lines(right, kept[kept["over_best"].notna()], "over_best", "recovery", "{}")
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    right.set(xlabel="interval over the best", ylabel="goodput", ylim=(0, 1.02))
    return figure


def _lines(ax: Axes, rows: pd.DataFrame, by: str, name: str, text: str) -> None:
    values = list(dict.fromkeys(rows[name]))
    names = [text.format(value) for value in values]
    colour, dash = colours(names), dashes(names)
    for value, shown in zip(values, names, strict=True):
        some = rows[rows[name] == value].sort_values(by)
        closed, drawn = (some[some["method"] == method] for method in ("closed_form", "simulated"))
        ax.plot(closed[by].astype(float), closed["value"], linewidth=1.5, label=shown,
                color=colour[shown], linestyle=dash[shown])  # fmt: skip
        ax.plot(drawn[by].astype(float), drawn["value"], ".", markersize=4, color=colour[shown])
    ax.legend(frameon=False, handlelength=1.6)
