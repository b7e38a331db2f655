"""Latency of a small message by link and distance, and what two layers save of three."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results
from harness.reporting.style import WIDTH, colours, markers

ORDER = 86.5
TITLE = "Network latency by link and distance"
# What ds.network.latency of the ledger has as claimed, and by how much it may be missed.
CLAIMED, TOLERANCE = -0.3, 0.05
CAPTION = (
    "Left: CPU-side end-to-end latency of a 64-byte transfer. Filled: printed in arXiv 2505.09343, "
    "table 5, none measured here; hollow: extrapolated to another pod of a three-layer fat tree, "
    "if each further switch adds what the two between same leaf and cross leaf add. Right: the "
    "longest path of a multi-plane fat tree of two layers (mpft) against that of a fat tree of "
    f"three (ft3) by these numbers; line and band: the {-100 * CLAIMED:g} % less that press "
    f"summaries claim, ± {100 * TOLERANCE:g} % of that, which the ledger allows. "
    "The paper has no such number."
)
LATENCY, PER_SWITCH, DIFFERENCE = (
    "network/latency_at_distance",
    "network/latency_per_switch",
    "network/latency_difference",
)
LABELS = ("network", "distance", "method", "switches", "topology", "over")
NETWORKS = {"infiniband": "InfiniBand", "roce": "RoCE", "nvlink": "NVLink"}
DISTANCES = {
    "same_node": "same node",
    "same_leaf": "same leaf",
    "cross_leaf": "cross leaf",
    "cross_pod": "cross pod",
}


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment with latencies by distance."""
    figures = {}
    for experiment, rows in results.labelled(LATENCY, *LABELS):
        figures[f"network_latency.{experiment}"] = (experiment, _draw(rows))
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    latencies = rows[rows["metric"] == LATENCY]
    switched = rows[rows["metric"] == PER_SWITCH].set_index("network")["value"]
    networks = list(dict.fromkeys([*switched.index, *latencies["network"]]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6), width_ratios=(1.9, 1))
    _latencies(left, latencies, switched, networks)
    _differences(right, rows[rows["metric"] == DIFFERENCE], networks)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  frameon=False)  # fmt: skip
    return figure


def _latencies(ax: Axes, latencies: pd.DataFrame, switched: pd.Series, networks: list[str]) -> None:
    distances = [name for name in DISTANCES if (latencies["distance"] == name).any()]
    highest = latencies.groupby("distance")["value"].max()
    for network, marker in markers(networks).items():
        own = latencies[latencies["network"] == network]
        own = own.assign(place=own["distance"].map(distances.index))
        colour, text = colours(networks)[network], NETWORKS.get(network, network)
        if network in switched:
            text = f"{text}, {switched[network]:.2f} us per switch"
        printed, further = (own[own["method"] == name] for name in ("printed", "extrapolated"))
        ax.plot(printed["place"], printed["value"], f"{marker}-", color=colour, markersize=7,
                label=text)  # fmt: skip
        ends = pd.concat([printed.tail(1), further])
        ax.plot(ends["place"], ends["value"], ":", color=colour)
        ax.plot(further["place"], further["value"], marker, color=colour, markersize=7,
                markerfacecolor="white")  # fmt: skip
        for distance, place, value in zip(own["distance"], own["place"], own["value"], strict=True):
            above = value == highest[distance]
            ax.annotate(f"{value:.2f}", (place, value), xytext=(-3, 6) if above else (3, -6),
                        fontsize=8, textcoords="offset points", horizontalalignment="center",
                        verticalalignment="bottom" if above else "top")  # fmt: skip
    switches = latencies.groupby("distance")["switches"].first()[distances]
    counts = ["-" if pd.isna(count) else f"{count:.0f}" for count in switches]
    ticks = [f"{DISTANCES[name]}\n{count}" for name, count in zip(distances, counts, strict=True)]
    ax.set_xticks(range(len(distances)), ticks)
    ax.set(xlabel="distance, switches on the path", ylabel="latency (us)")
    ax.set_ylim(0, 1.12 * latencies["value"].max())
    ax.margins(x=0.1)
    ax.grid(visible=False, axis="x")


def _differences(ax: Axes, differences: pd.DataFrame, networks: list[str]) -> None:
    percent = 100 * differences["value"]
    bars = list(differences["network"].map(colours(networks)))
    ax.bar(range(len(percent)), percent, 0.55, color=bars)
    for place, value in enumerate(percent):
        ax.annotate(f"{value:.1f}".replace("-", "\N{MINUS SIGN}"), (place, value), xytext=(0, -3),
                    fontsize=8, va="top", ha="center", textcoords="offset points")  # fmt: skip
    claimed = 100 * CLAIMED
    most = claimed * (1 + TOLERANCE)
    ax.axhspan(claimed * (1 - TOLERANCE), most, color="0.88", zorder=0)
    ax.axhline(claimed, color="black", linewidth=1)
    ax.annotate("claimed", (0.5, most), xycoords=("axes fraction", "data"), xytext=(0, -3),
                fontsize=8, va="top", ha="center", textcoords="offset points")  # fmt: skip
    ax.set_xticks(range(len(percent)), [
        f"{NETWORKS.get(row.network, row.network)}\n{row.topology} / {row.over}"
        for row in differences.itertuples()
    ])  # fmt: skip
    ax.set(ylabel="difference of latency (%)", ylim=(1.18 * claimed, 0))
    ax.margins(x=0.15)
    ax.grid(visible=False, axis="x")
