"""Small networks of every family, switch by switch and link by link."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from harness.reporting.results import Results, with_labels
from harness.reporting.style import WIDTH, colours

ORDER = 85.9
TITLE = "Network topologies"
CAPTION = (
    "Small networks of the families of arXiv 2505.09343, table 3, drawn link by link as they are "
    "built. Links are between switches, as in the table: the thin cables of endpoints are not "
    "among them. The multi-plane fat tree is that of figure 3 there, of smaller switches: every "
    "network card of a node is in a plane of its own, which is a two-layer fat tree, and no link "
    "joins planes. Groups, a colour each: the pods of the three-layer fat tree, and its core "
    "switches that are linked to the same others; the switches of equal x and of equal m in the "
    "Slim Fly (of q = 5, the Hoffman-Singleton graph); and those of the dragonfly."
)
ENDPOINTS, LINKS, PORTS = "network_graph/endpoints", "network_graph/links", "network_graph/ports"
LABELS = ("topology", "switch", "other", "layer", "group", "node")
NAMES = {
    "mpft": "Multi-plane fat tree (mpft)",
    "ft2": "Two-layer fat tree (ft2)",
    "ft3": "Three-layer fat tree (ft3)",
    "slim_fly": "Slim Fly",
    "dragonfly": "Dragonfly",
}
LAYERS = {2: ("leaves", "spines"), 3: ("edge", "aggregation", "core")}
# Colours of links between groups, and of endpoints.
BETWEEN, OUTSIDE = "0.75", "0.3"
# Share of its place that a group or node takes; how far endpoints are from their switch, in layers
# and in radii of a circle, and how many layers nodes are below the leaves.
FILLED, DEPTH, RIM, NODE_DEPTH = 0.84, 0.45, 0.13, 1.5
# Height over length of the links within a group on a circle.
BEND = 0.35
# Inches of a row of panels: with nodes, with layers, with a circle.
NODES_HEIGHT, LAYERS_HEIGHT, CIRCLE_HEIGHT = 3.4, 2.1, 3.3


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that recorded graphs of networks."""
    figures = {}
    for experiment, _ in results.with_metric(ENDPOINTS):
        rows = results.of(experiment)
        rows = with_labels(rows[rows["metric"].isin([ENDPOINTS, LINKS, PORTS])], *LABELS)
        rows = rows.astype({"value": int} | dict.fromkeys(LABELS[1:], "Int64"))
        figures[f"network_graphs.{experiment}"] = (experiment, _draw(rows))
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    networks = {
        name: {metric: some[some["metric"] == metric] for metric in (ENDPOINTS, LINKS, PORTS)}
        for name, some in rows.groupby("topology", sort=False)
    }
    # A panel with nodes has a row of its own, others share one.
    narrow = [name for name, parts in networks.items() if parts[PORTS].empty]
    grid = [[name, name] for name in networks if name not in narrow]
    grid += [[*narrow[start : start + 2], "."][:2] for start in range(0, len(narrow), 2)]
    heights = [max(_height(networks[name]) for name in row if name != ".") for row in grid]
    figure, axes = plt.subplot_mosaic(
        grid, figsize=(WIDTH, 0.4 + sum(heights)), height_ratios=heights
    )
    for name, parts in networks.items():
        _panel(axes[name], name, parts)
    handles = [
        Line2D([], [], color="black", marker="s", linestyle="", markersize=5, label="switch"),
        Line2D([], [], color=OUTSIDE, marker="o", linestyle="", markersize=2.5, label="endpoint"),
        Line2D([], [], color="black", label="link within a plane or group"),
        Line2D([], [], color=BETWEEN, label="link between groups"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _height(parts: dict[str, pd.DataFrame]) -> float:
    if not parts[PORTS].empty:
        return NODES_HEIGHT
    return LAYERS_HEIGHT if parts[ENDPOINTS]["layer"].max() else CIRCLE_HEIGHT


def _panel(ax: Axes, name: str, parts: dict[str, pd.DataFrame]) -> None:
    switches = parts[ENDPOINTS].set_index("switch")
    palette = colours([str(group) for group in sorted(set(switches["group"]))])
    switches["colour"] = switches["group"].astype(str).map(palette)
    layered = switches["layer"].max() > 0
    switches = _place_layers(switches) if layered else _place_circle(switches)
    _draw_links(ax, parts[LINKS], switches)
    if parts[PORTS].empty:
        _draw_endpoints(ax, switches)
    else:
        _draw_nodes(ax, parts[PORTS], switches)
    ax.scatter(switches["x"], switches["y"], s=24, c=list(switches["colour"]), marker="s",
               edgecolor="white", linewidth=0.5, zorder=3)  # fmt: skip
    if layered:
        _name_layers(ax, switches, not parts[PORTS].empty)
    else:
        ends = (-1.05 - RIM, 1.05 + RIM)
        ax.set(aspect="equal", xticks=[], yticks=[], xlim=ends, ylim=ends)
    ax.set_title(_title(name, parts[ENDPOINTS], parts[LINKS]), loc="left", fontsize=9)
    ax.spines[:].set_visible(False)
    ax.grid(visible=False)
    ax.tick_params(length=0)


def _title(name: str, switches: pd.DataFrame, links: pd.DataFrame) -> str:
    ends = [switches, links, links.assign(switch=links["other"])]
    ports = pd.concat(ends).groupby("switch")["value"].sum().max()
    return (
        f"{NAMES.get(name, name)}, {ports}-port switches\n{switches['value'].sum()} endpoints, "
        f"{len(switches)} switches, {links['value'].sum()} links"
    )


def _place_layers(switches: pd.DataFrame) -> pd.DataFrame:
    """Return the switches with their places: a row per layer, the groups of a layer side by side.

    ``x`` and ``y`` are those of a switch, ``down`` is from there to the middle of its endpoints and
    ``wide`` along these.
    """
    groups = switches.groupby("layer")["group"]
    slot, slots = groups.rank(method="dense") - 1, groups.transform("nunique")
    within = switches.groupby(["layer", "group"])["group"]
    size = within.transform("size")
    x = (slot + 0.5 + FILLED * ((within.cumcount() + 0.5) / size - 0.5)) / slots
    return switches.assign(x=x, y=switches["layer"], down_x=0.0, down_y=-DEPTH,
                           wide_x=FILLED / slots / size, wide_y=0.0)  # fmt: skip


def _place_circle(switches: pd.DataFrame) -> pd.DataFrame:
    """Return the switches with such places on a circle, with gaps between the groups."""
    gaps = switches["group"].rank(method="dense").to_numpy(float) - 1
    step = 2 * np.pi / (len(switches) + gaps.max() + 1)
    angle = np.pi / 2 - step * (np.arange(len(switches)) + gaps)
    x, y = np.cos(angle), np.sin(angle)
    return switches.assign(x=x, y=y, down_x=RIM * x, down_y=RIM * y, wide_x=step * y,
                           wide_y=-step * x)  # fmt: skip


def _draw_links(ax: Axes, links: pd.DataFrame, switches: pd.DataFrame) -> None:
    start, end = (switches.loc[links[side]] for side in ("switch", "other"))
    within = start["group"].to_numpy() == end["group"].to_numpy()
    # Switches of a group on a circle would hide straight links: bend them to its inside.
    bent = within & (start["layer"].to_numpy() == end["layer"].to_numpy())
    lines = _bent(*(some[["x", "y"]].to_numpy(float) for some in (start, end)), BEND * bent)
    # Links between groups lie below the others; parallel links are a wider line.
    for chosen, colour, width in (
        (~within, BETWEEN, 0.5),
        (within, list(start.loc[within, "colour"]), 1.0),
    ):
        widths = width * links["value"].to_numpy(float)[chosen]
        ax.add_collection(
            LineCollection(list(lines[chosen]), colors=colour, linewidths=widths, zorder=1)
        )


def _bent(starts: np.ndarray, ends: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """Return lines bent inwards by ``bend`` of their length, shape (lines, points, 2)."""
    along = np.linspace(0, 1, 17)[:, None]
    straight = starts[:, None] + along * (ends - starts)[:, None]
    inwards = -(starts + ends) / 2
    height = bend * np.linalg.norm(ends - starts, axis=1)
    return straight + 4 * along * (1 - along) * (height[:, None] * inwards)[:, None]


def _draw_endpoints(ax: Axes, switches: pd.DataFrame) -> None:
    each = switches.loc[switches.index.repeat(switches["value"])]
    aside = 0.8 * ((each.groupby(level=0).cumcount() + 0.5) / each["value"] - 0.5).to_numpy(float)
    starts, down, wide = (
        each[[f"{name}x", f"{name}y"]].to_numpy(float) for name in ("", "down_", "wide_")
    )
    ends = starts + down + aside[:, None] * wide
    ax.add_collection(LineCollection(list(np.stack([starts, ends], axis=1)), colors=OUTSIDE,
                      linewidths=0.4, zorder=1))  # fmt: skip
    ax.scatter(*ends.T, s=3, color=OUTSIDE, linewidth=0, zorder=2)


def _draw_nodes(ax: Axes, ports: pd.DataFrame, switches: pd.DataFrame) -> None:
    """Draw a box per node with its network cards, and the cable of each in the plane's colour."""
    ports = ports.loc[ports.index.repeat(ports["value"])].sort_values(["node", "switch"])
    nodes = ports["node"].nunique()
    within = ports.groupby("node")["node"]
    aside = (within.cumcount() + 0.5) / within.transform("size") - 0.5
    x = ((ports["node"] + 0.5 + FILLED * aside) / nodes).to_numpy(float)
    to = switches.loc[ports["switch"]]
    cards = np.stack([x, np.full(len(x), -NODE_DEPTH)], axis=1)
    # Cables leave upwards, so that none crosses the box of another node.
    above = cards + np.array([0, 0.16])
    lines = np.stack([cards, above, to[["x", "y"]].to_numpy(float)], axis=1)
    ax.add_collection(LineCollection(list(lines), colors=list(to["colour"]), linewidths=0.5,
                                     alpha=0.8, zorder=1))  # fmt: skip
    ax.scatter(*cards.T, s=9, c=list(to["colour"]), linewidth=0, zorder=3)
    for node in range(nodes):
        ax.add_patch(FancyBboxPatch(
            ((node + (1 - FILLED) / 2) / nodes, -NODE_DEPTH - 0.09), FILLED / nodes, 0.18,
            boxstyle="round,pad=0,rounding_size=0.01", facecolor="0.93", edgecolor="0.6",
            linewidth=0.6, zorder=2,
        ))  # fmt: skip


def _name_layers(ax: Axes, switches: pd.DataFrame, with_nodes: bool) -> None:
    names = LAYERS[switches["layer"].max() + 1]
    lowest = (-NODE_DEPTH, "nodes") if with_nodes else (-DEPTH, "endpoints")
    ax.set_yticks([lowest[0], *range(len(names))], [lowest[1], *names])
    top = len(names) - (0.6 if with_nodes else 0.8)
    ax.set(xticks=[], xlim=(0, 1), ylim=(lowest[0] - 0.2, top))
    if with_nodes:
        for group, some in switches.groupby("group"):
            ax.text(some["x"].mean(), len(names) - 0.88, f"plane {group + 1}", fontsize=8,
                    ha="center", va="bottom")  # fmt: skip
