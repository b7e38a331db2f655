"""What a flow keeps beside a burst of many to one, by queues of the switch and by control."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results
from harness.reporting.style import WIDTH, colours, dashes

ORDER = 88
TITLE = "Incast"
CAPTION = (
    "A message to another output (top) or to the receiver itself (middle) beside a burst, on the "
    "link of one of its senders: throughput over its max-min fair share, by what the switch's "
    "inputs have and by congestion control. Credits of the receiver cost a round trip before the "
    "first packet. Bottom: the burst itself, in a switch with shared buffers, over its least time; "
    "the most that waits for the receiver; and the switch alone with inputs that never run empty, "
    "beside the limit of one line per input, 2 - sqrt(2). Means over seeds."
)
SHARE, TIME, BACKLOG, SATURATION = (
    "incast/victim_share",
    "incast/burst_time_over_least",
    "incast/peak_backlog",
    "switch/saturation_throughput",
)
LABELS = ("queues", "control", "victim", "start", "senders", "ports", "method")
QUEUES = {
    "fifo": "one queue",
    "shared_buffer": "queue per output, shared buffer",
    "per_output": "queue and buffer per output",
    "per_queue_pair": "queue and buffer per queue pair",
}
CONTROLS = {"none": "no control", "delay": "by delay", "receiver": "receiver's credits"}
VICTIMS = {"same_input": "to another output", "same_ports": "to the receiver"}
MARKERS = "osvx"
MEGABYTE = 1e6


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that simulated incast."""
    figures = {}
    for experiment, rows in results.labelled(SHARE, *LABELS):
        figures[f"incast.{experiment}"] = (experiment, _draw(rows))
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    of = {metric: some for metric, some in rows.groupby("metric")}
    figure, axes = plt.subplots(3, 3, figsize=(WIDTH, 6.6))
    # In the midst of the burst, or as near to it as there is a victim.
    shares = of[SHARE][of[SHARE]["start"] == of[SHARE]["start"].max()]
    for line, (victim, place) in zip(axes, VICTIMS.items(), strict=False):
        for ax, (control, name) in zip(line, CONTROLS.items(), strict=True):
            some = shares[(shares["victim"] == victim) & (shares["control"] == control)]
            _lines(ax, some, "queues", QUEUES, "senders")
            ax.set(title=f"{place},\n{name}", ylim=(0, 1.1))
        line[0].set(ylabel="share of fair throughput")
    _burst(axes[2, 0], of[TIME], "time over least")
    backlog = of[BACKLOG].assign(value=of[BACKLOG]["value"] / MEGABYTE)
    _burst(axes[2, 1], backlog, "MB in the switch")
    axes[2, 1].set(yscale="log")
    axes[2, 0].set(ylim=(0.99, 1 + 2 * (of[TIME]["value"].max() - 1)))
    axes[2, 0].legend(frameon=False, loc="upper right")
    _saturation(axes[2, 2], of[SATURATION])
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _lines(ax: Axes, rows: pd.DataFrame, by: str, names: dict[str, str], x: str) -> None:
    """Draw means over seeds against ``x``, one line for every value of the label ``by``."""
    palette = colours([*QUEUES, *CONTROLS])
    keys = list(names)
    for (key, name), marker in zip(names.items(), MARKERS, strict=False):
        found = rows[rows[by] == key].groupby(x)["value"].mean()
        if not found.empty:
            ax.plot(found.index.astype(float), found, marker=marker, markersize=4, linewidth=1.2,
                    color=palette[key], linestyle=dashes(keys)[key], label=name,
                    markerfacecolor="none")  # fmt: skip
    _powers_of_two(ax, sorted(set(rows[x].dropna())), x)


def _powers_of_two(ax: Axes, values: Sequence[float], name: str) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.set_xlabel(name)


def _burst(ax: Axes, rows: pd.DataFrame, name: str) -> None:
    _lines(ax, rows[rows["queues"] == "shared_buffer"], "control", CONTROLS, "senders")
    ax.set(title="the burst", ylabel=name)


def _saturation(ax: Axes, rows: pd.DataFrame) -> None:
    simulated = rows[rows["method"] == "simulated"]
    _lines(ax, simulated, "queues", QUEUES, "ports")
    closed = rows[(rows["method"] == "closed_form") & (rows["queues"] == "fifo")]
    ax.axhline(closed["value"].iloc[0], color="0.4", linewidth=1)
    ax.set(title="every input full", ylabel="throughput", ylim=(0, 1.1))
