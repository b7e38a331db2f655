"""Speed of a layer's matrix products beside multiprocessors that communicate."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results
from harness.reporting.style import WIDTH, colours, dashes

ORDER = 87
TITLE = "Multiprocessors given to communication"
CAPTION = (
    "Speed of matrix products over that on all multiprocessors, by how many of them only "
    "communicate; the vertical line is the largest number that DeepSeek-V3's training uses. "
    "Black: in proportion, as for work that is cut ever finer. Left: all products of a layer one "
    "after the other, by tile size; right: each product with the tile that is fastest for it. A "
    "last wave of tiles takes as long as a full one, so that a product loses nothing or a whole "
    "wave."
)
SPEED, USED = "budget/speed", "budget/used"
LABELS = ("communicating", "method", "product", "tile")
LAYER, BEST = "layer", "best"


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that took multiprocessors away."""
    figures = {}
    for experiment, rows in results.labelled(SPEED, *LABELS):
        drawn = _draw(rows.sort_values("communicating"))
        figures[f"communication_budget.{experiment}"] = (experiment, drawn)
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4.2), sharey=True)
    used = rows.loc[rows["metric"] == USED, "value"]
    rows = rows[rows["metric"] == SPEED]
    layer = rows["product"] == LAYER
    _panel(left, rows, rows[layer], "tile")
    _panel(right, rows, rows[~layer & (rows["tile"] == BEST)], "product")
    left.set(ylabel="speed")
    for ax in (left, right):
        ax.axvline(used.item(), color="0.6", linewidth=1)
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, some: pd.DataFrame, by: str) -> None:
    names = list(dict.fromkeys(some[by].dropna()))
    colour, dash = colours(names), dashes(names)
    proportional = rows[rows["method"] == "proportional"]
    ax.plot(proportional["communicating"].astype(float), proportional["value"], color="black",
            linewidth=2, label="proportional")  # fmt: skip
    for name in names:
        line = some[some[by] == name]
        ax.plot(line["communicating"].astype(float), line["value"], linewidth=1.3, label=name,
                color=colour[name], linestyle=dash[name])  # fmt: skip
    ax.set(xlabel="multiprocessors that communicate")
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
