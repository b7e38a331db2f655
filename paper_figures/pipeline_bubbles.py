"""How long ranks idle by pipeline schedule, simulated and by closed form."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results, with_labels
from harness.reporting.style import WIDTH, colours

ORDER = 83
TITLE = "Pipeline bubbles"
CAPTION = (
    "Idle time of a rank in a training step. Bars: simulated, mean over ranks; a thin line reaches "
    "to the rank that idles longest. Black ticks: closed form (DeepSeek-V3, table 2; interleaved: "
    "Megatron-LM), exact if forward pass, input gradient and weight gradient take equally long; it "
    "knows no latency. Ring: printed in arXiv 2505.09343, table 4; the durations of that panel "
    "follow from its sums if a rank has 120 micro-batches."
)
BUBBLE, LONGEST = "pipeline/bubble", "pipeline/longest_bubble"
LABELS = ("schedule", "stages", "micro_batches", "virtual_stages", "durations", "method")
BAR = 0.62


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that simulated schedules."""
    figures = {}
    for experiment in results.plan["experiments"]:
        rows = results.of(experiment)
        rows = rows[rows["metric"].isin([BUBBLE, LONGEST])]
        if not rows.empty:
            rows = with_labels(rows, *LABELS)
            figures[f"pipeline_bubbles.{experiment}"] = (experiment, _draw(_largest(rows)))
    return figures


def _largest(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the most stages, and of every schedule the most micro-batches there."""
    rows = rows[rows["stages"] == rows["stages"].max()]
    most = rows.groupby("schedule")["micro_batches"].transform("max")
    return rows[rows["micro_batches"] == most]


def _draw(rows: pd.DataFrame) -> Figure:
    rows = rows.assign(name=[_name(*each) for each in zip(
        rows["schedule"], rows["virtual_stages"], rows["micro_batches"], strict=True
    )])  # fmt: skip
    names = list(dict.fromkeys(rows["name"]))[::-1]
    panels = list(rows.groupby("durations", sort=False))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, 1.1 + 0.32 * len(names)), sharey=True, squeeze=False
    )
    for ax, (durations, some) in zip(axes.flat, panels, strict=True):
        _panel(ax, some, names)
        unit = some["unit"].iloc[0]
        ax.set(title=str(durations).replace("_", " "),
               xlabel="forward passes" if unit == "1" else unit)  # fmt: skip
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylabel(f"{rows['stages'].iloc[0]} stages, n micro-batches")
    handles = {name: handle for ax in axes.flat
               for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3,
                  frameon=False)  # fmt: skip
    return figure


def _name(schedule: str, virtual_stages: int, micro_batches: int) -> str:
    pieces = f" x {virtual_stages}" if virtual_stages > 1 else ""
    return f"{schedule}{pieces}, n = {micro_batches}"


def _panel(ax: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    place = rows["name"].map(names.index)
    values = rows["value"].astype(float)
    simulated = (rows["method"] == "simulated") & (rows["metric"] == BUBBLE)
    ax.barh(place[simulated], values[simulated], BAR, color=colours(["simulated"])["simulated"],
            label="simulated")  # fmt: skip
    longest = rows["metric"] == LONGEST
    ax.hlines(place[longest], values[simulated], values[longest], color="black", linewidth=0.8)
    closed, printed = rows["method"] == "closed_form", rows["method"] == "printed"
    ax.plot(values[closed], place[closed], "|", color="black", markersize=15, markeredgewidth=1.6,
            label="closed form")  # fmt: skip
    if printed.any():
        ax.plot(values[printed], place[printed], "o", markerfacecolor="none", color="black",
                markersize=7, label="printed")  # fmt: skip
    ax.set_xlim(left=0)
    ax.margins(x=0.08)
    ax.grid(visible=False, axis="y")
