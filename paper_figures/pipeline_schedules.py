"""What every rank does when, by pipeline schedule."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from seaborn import set_hls_values

from harness.reporting.results import Results, with_labels
from harness.reporting.style import WIDTH, colours

ORDER = 82
TITLE = "Pipeline schedules"
CAPTION = (
    "Simulated: one row per rank, numbers are micro-batches. Halved bars are a forward and a "
    "backward pass that overlap. Light: the second of two stages that a rank holds; in DualPipe "
    "its micro-batches come from the farther end. DualPipeV has half of the ranks for the same "
    "model and micro-batches, so it takes about twice the time."
)
START, END = "schedule/start", "schedule/end"
KINDS = {
    "forward": "forward",
    "backward": "backward",
    "backward_input": "backward, inputs only",
    "backward_weight": "backward, weights only",
}
LABELS = ("schedule", "stages", "rank", "operation", "kind", "stage", "micro_batch")
ROW, BAR, LIGHT = 0.17, 0.9, 0.8
# Points of a digit's size, inches of its width, and inches of the time axis.
FONT, DIGIT, INCHES = 4, 0.036, WIDTH - 0.5


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that recorded the operations of schedules."""
    figures = {}
    for experiment in results.plan["experiments"]:
        rows = results.of(experiment)
        rows = rows[rows["metric"].isin([START, END])]
        if not rows.empty:
            figures[f"pipeline_schedules.{experiment}"] = (experiment, _draw(_tasks(rows)))
    return figures


def _tasks(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per task, with its start and end."""
    rows = with_labels(rows, *LABELS)
    tasks = rows.pivot_table(index=list(LABELS), columns="metric", values="value", sort=False)
    return tasks.astype(float).rename(columns={START: "start", END: "end"}).reset_index()


def _draw(tasks: pd.DataFrame) -> Figure:
    groups = {name: some for name, some in tasks.groupby("schedule", sort=False)}
    ranks = [some["rank"].nunique() for some in groups.values()]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(WIDTH, 0.6 + sum(0.5 + ROW * count for count in ranks)),
        height_ratios=ranks, squeeze=False,
    )  # fmt: skip
    colour = colours(list(KINDS))
    for ax, (schedule, some) in zip(axes.flat, groups.items(), strict=True):
        _panel(ax, some, colour)
        stages = some["stages"].iloc[0]
        ax.set_title(f"{schedule}, {stages} stages, {some['micro_batch'].nunique()} micro-batches",
                     loc="left")  # fmt: skip
    axes[-1, 0].set_xlabel("time")
    handles = [Patch(color=colour[kind], label=text) for kind, text in KINDS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _panel(ax: Axes, tasks: pd.DataFrame, colour: dict[str, Any]) -> None:
    paired = tasks.duplicated(["rank", "operation"], keep=False)
    side = np.where(tasks["kind"] == "forward", -1, 1)
    tasks = tasks.assign(
        y=tasks["rank"] + np.where(paired, side * BAR / 4, 0),
        height=np.where(paired, BAR / 2, BAR),
        width=tasks["end"] - tasks["start"],
        # Every rank begins with the stage that comes first in the direction of its data.
        first=tasks["stage"] == tasks.groupby("rank")["stage"].transform("first"),
    )
    for (kind, first), some in tasks.groupby(["kind", "first"]):
        face = colour[kind] if first else set_hls_values(colour[kind], l=LIGHT)
        ax.barh(some["y"], some["width"], some["height"], left=some["start"], color=face,
                edgecolor="white", linewidth=0.3)  # fmt: skip
    makespan = tasks["end"].max()
    for task in tasks.itertuples():
        if task.width / makespan * INCHES > DIGIT * len(str(task.micro_batch)):
            ax.text(task.start + task.width / 2, task.y, str(task.micro_batch), fontsize=FONT,
                    ha="center", va="center_baseline")  # fmt: skip
    ax.set(xlim=(0, makespan), ylabel="rank")
    ax.set_yticks(range(tasks["rank"].nunique()))
    ax.invert_yaxis()
    ax.grid(visible=False)
