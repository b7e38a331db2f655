"""What networks cost per endpoint, by kind and by size."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results, with_labels
from harness.reporting.style import WIDTH, colours, dashes

ORDER = 86
TITLE = "Cost of network topologies"
CAPTION = (
    "Networks of 64-port switches. Bars and lines: with prices of switches and links that were "
    "fitted to the printed costs of arXiv 2505.09343, table 3 (black ticks and crosses), which "
    "prints no prices: a fit, not a price list. Grey: what prices leave possible that fit the "
    "other printed costs only. Star: counted by formula, as no such graph exists. Right: smaller "
    "networks of the same switches, up to the printed one."
)
EACH, SIZED = "network/cost_per_endpoint", "network/cost_at_size"
ENDPOINTS, BUILT = "topology/endpoints", "topology/diameter"
LABELS = ("topology", "method", "endpoints")
BAR = 0.62


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that priced networks."""
    figures = {}
    for experiment in results.plan["experiments"]:
        rows = results.of(experiment)
        if (rows["metric"] == SIZED).any():
            rows = with_labels(rows, *LABELS)
            figures[f"network_topologies.{experiment}"] = (experiment, _draw(rows))
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    names = list(dict.fromkeys(rows.loc[rows["metric"] == EACH, "topology"]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 1.0 + 0.3 * len(names)))
    _each(left, rows, names)
    printed = rows[(rows["method"] == "printed") & rows["metric"].isin([EACH, ENDPOINTS])]
    _by_size(right, rows[rows["metric"] == SIZED], printed)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=6,
                  frameon=False)  # fmt: skip
    return figure


def _each(ax: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    each = rows[rows["metric"] == EACH].pivot(index="topology", columns="method", values="value")
    each = each.astype(float).loc[names]
    places = pd.Series(range(len(names))[::-1], index=names)
    ax.barh(places, each["fitted"], BAR, color=colours(["fitted"])["fitted"])
    ends = each[["least_by_the_others", "largest_by_the_others"]].dropna()
    ax.hlines(places[ends.index], *ends.T.to_numpy(), color="0.6", linewidth=5)
    printed = each["printed"].dropna()
    ax.plot(printed, places[printed.index], "|", color="black", markersize=15, markeredgewidth=1.6,
            label="printed")  # fmt: skip
    built = set(rows.loc[rows["metric"] == BUILT, "topology"])
    ax.set_yticks(places, [name if name in built else f"{name} *" for name in names])
    ax.set(xlabel="k$ per endpoint")
    ax.grid(visible=False, axis="y")


def _by_size(ax: Axes, sized: pd.DataFrame, printed: pd.DataFrame) -> None:
    marks = printed.pivot(index="topology", columns="metric", values="value").astype(float)
    names = [name for name in dict.fromkeys(sized["topology"]) if name in marks.index]
    colour, dash = colours(names), dashes(names)
    for name in names:
        some = sized[sized["topology"] == name]
        endpoints = some["endpoints"].astype(float)
        ax.plot(endpoints, some["value"].astype(float) * 1e3 / endpoints, linewidth=1.6,
                label=name, color=colour[name], linestyle=dash[name])  # fmt: skip
    ax.plot(marks[ENDPOINTS], marks[EACH], "x", color="black", markersize=7,
            markeredgewidth=1.4, label="printed")  # fmt: skip
    ax.set(xscale="log", xlabel="endpoints", ylabel="k$ per endpoint")
    ax.set_ylim(0, 1.08 * marks[EACH].max())
