"""Bandwidth of training traffic on networks: routing, planes, failures and dispatch."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harness.reporting.results import Results
from harness.reporting.style import WIDTH, colours

ORDER = 87
TITLE = "Traffic on networks"
CAPTION = (
    "Simulated flows that share links fairly, without packets, queues or latencies; bars are "
    "means over seeds, thin lines reach from the least to the largest. All-to-all: share of what "
    "the endpoints could send. Planes and rails: one plane per GPU of a node, against one plane "
    "with all rails, whose messages change rails over NVLink or in the network. Rings: bandwidth "
    "of a group by groups per node, with one queue pair per hop (dashes: with more, ECMP), where "
    "rings visit nodes regularly or at random; crosses: read off arXiv 2505.09343, figure 8, "
    "whose set-up is not published. Failures: what is left if planes carry shares like their "
    "spines, or equal ones; hollow: some endpoints are cut off. Dispatch: bound by network and "
    "NVLink, and what figure 7 prints."
)
SHARE, RAILS, RING, FAILED, LOGICAL = (
    "traffic/all_to_all_share",
    "traffic/algorithm_bandwidth",
    "traffic/ring_bandwidth",
    "traffic/share_after_failure",
    "dispatch/logical_bandwidth",
)
JOINED = "traffic/joined_pairs"
LABELS = ("topology", "routing", "gpus", "network", "rails_change_by", "groups", "order",
          "queue_pairs", "method", "planes", "failure", "spread", "operation", "scheme",
          "limit")  # fmt: skip
ROUTINGS = ("static", "ecmp", "sprayed", "adaptive")
COMPARED = ("ecmp", "adaptive")
# What fails, and how planes share what they carry: for the others both ways come to the same.
FAILURES = {
    "spine": ("spine", "by_capacity"),
    "spine, equal shares": ("spine", "even"),
    "leaf": ("leaf", "by_capacity"),
    "plane": ("plane", "by_capacity"),
}
# None of those that stand for a routing.
FAILURE_COLOURS = {name: colours([*ROUTINGS, *FAILURES])[name] for name in FAILURES}
# Of network and how rails are changed: text and marker.
NETWORKS = {
    ("planes", None): ("planes", "o"),
    ("rails", "nvlink"): ("rails, NVLink", "+"),
    ("rails", "network"): ("rails, network", "x"),
}
GROUP = 0.84


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that simulated traffic."""
    figures = {}
    for experiment, rows in results.labelled(SHARE, *LABELS):
        figures[f"network_traffic.{experiment}"] = (experiment, _draw(rows))
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    of = {metric: some for metric, some in rows.groupby("metric")}
    figure, axes = plt.subplots(3, 2, figsize=(WIDTH, 7.4))
    _bars(axes[0, 0], of[SHARE], "topology")
    axes[0, 0].set(title="all-to-all", ylabel="share of bandwidth")
    _rails(axes[0, 1], of[RAILS])
    rings = of[RING]
    for ax, order in zip(axes[1], ("strided", "shuffled"), strict=True):
        _rings(ax, rings[rings["order"] == order], rings[rings["method"] == "read_off"])
        ax.set(title=f"rings, {order}", xlabel="groups per node", ylabel="GB/s")
    _failures(axes[2, 0], of[FAILED], of[JOINED])
    _dispatch(axes[2, 1], of[LOGICAL])
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _bars(ax: Axes, rows: pd.DataFrame, by: str) -> None:
    """Draw a group of bars, one per routing, for every value of the label ``by``."""
    places = {value: place for place, value in enumerate(dict.fromkeys(rows[by]))}
    names = [name for name in ROUTINGS if (rows["routing"] == name).any()]
    width = GROUP / len(names)
    for index, name in enumerate(names):
        found = rows[rows["routing"] == name].groupby(by)["value"].agg(["mean", "min", "max"])
        x = found.index.map(places) + (index - (len(names) - 1) / 2) * width
        ax.bar(x, found["mean"], width * 0.92, color=colours(ROUTINGS)[name], label=name)
        ax.vlines(x, found["min"], found["max"], color="0.2", linewidth=1)
    _ticks(ax, list(places))


def _ticks(ax: Axes, values: Sequence[str | float]) -> None:
    # A label that some records lack has turned numbers into floats.
    texts = [value if isinstance(value, str) else f"{value:.0f}" for value in values]
    ax.set_xticks(range(len(values)), texts)
    ax.grid(visible=False, axis="x")


def _rails(ax: Axes, rows: pd.DataFrame) -> None:
    sizes = sorted(set(rows["gpus"]))
    for (network, change), (text, marker) in NETWORKS.items():
        some = rows[rows["network"] == network]
        some = some[some["rails_change_by"].isna() if change is None
                    else some["rails_change_by"] == change]  # fmt: skip
        for side, routing in zip((-0.12, 0.12), COMPARED, strict=True):
            found = some[some["routing"] == routing].groupby("gpus")["value"].mean()
            ax.plot([sizes.index(size) + side for size in found.index], found, marker, markersize=7,
                    color=colours(ROUTINGS)[routing], markerfacecolor="none",
                    label=text if routing == COMPARED[-1] else None)  # fmt: skip
    _ticks(ax, sizes)
    ax.set(title="all-to-all over planes and rails", xlabel="GPUs", ylabel="GB/s")
    ax.set_ylim(0, 1.08 * rows["value"].max())
    ax.legend(frameon=False, loc="lower left")


def _rings(ax: Axes, rows: pd.DataFrame, read_off: pd.DataFrame) -> None:
    fewest = rows["queue_pairs"].min()
    _bars(ax, rows[rows["queue_pairs"] == fewest], "groups")
    groups = list(dict.fromkeys(rows["groups"]))
    names = [name for name in ROUTINGS if (rows["routing"] == name).any()]
    more = rows[(rows["queue_pairs"] > fewest) & (rows["routing"] == "ecmp")]
    for routing, some, marker in (
        *(("ecmp", each, "_") for _, each in more.groupby("queue_pairs")),
        *((name, read_off[read_off["routing"] == name], "x") for name in names),
    ):
        offset = (names.index(routing) - (len(names) - 1) / 2) * GROUP / len(names)
        found = some.groupby("groups")["value"].mean()
        x = [groups.index(value) + offset for value in found.index]
        ax.plot(x, found, marker, color="black", markersize=7, markeredgewidth=1.4)


def _failures(ax: Axes, rows: pd.DataFrame, joined: pd.DataFrame) -> None:
    planes = sorted(set(rows["planes"]))
    keys = ["planes", "failure", "spread"]
    values, shares = (some.set_index(keys)["value"] for some in (rows, joined))
    width = GROUP / len(FAILURES)
    for index, (text, (failure, spread)) in enumerate(FAILURES.items()):
        color = FAILURE_COLOURS[text]
        for place, count in enumerate(planes):
            whole = shares[count, failure, spread] == 1
            x = place + (index - (len(FAILURES) - 1) / 2) * width
            ax.bar(x, values[count, failure, spread], width * 0.86, edgecolor=color,
                   facecolor=color if whole else "white")  # fmt: skip
    _ticks(ax, planes)
    ax.set(title="after a failure in one plane", xlabel="planes", ylabel="share of bandwidth")
    ax.set_ylim(top=1.5)
    handles = [Patch(color=color, label=text) for text, color in FAILURE_COLOURS.items()]
    ax.legend(handles=handles, frameon=False, loc="upper center", ncols=2, columnspacing=1)


def _dispatch(ax: Axes, rows: pd.DataFrame) -> None:
    sizes = sorted(set(rows["gpus"]))
    bound = rows[(rows["scheme"] == "forwarded") & (rows["limit"] != "none")]
    ax.bar([sizes.index(size) for size in bound["gpus"]], bound["value"], 0.6, color="0.8",
           label="bound")  # fmt: skip
    for operation, marker in (("dispatch", "o"), ("combine", "v")):
        some = rows[rows["operation"] == operation]
        ax.plot([sizes.index(size) for size in some["gpus"]], some["value"], marker, color="black",
                markersize=6, label=operation)  # fmt: skip
    _ticks(ax, sizes)
    ax.set(title="dispatch to experts", xlabel="GPUs", ylabel="logical GB/s")
    ax.set_ylim(top=1.25 * rows["value"].max())
    ax.legend(frameon=False, loc="upper right", ncols=3, columnspacing=1)
