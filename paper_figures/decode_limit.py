"""How the limit of expert-parallel decoding moves with each of its inputs."""

import math

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results, with_labels
from harness.reporting.style import WIDTH, colours

ORDER = 84
TITLE = "Limit of expert-parallel decoding"
CAPTION = (
    "Tokens per second and request if all computation hides behind dispatch and combine; each "
    "panel varies one input, the others are those of the case on InfiniBand. Squares: closed form. "
    "Crosses: printed in arXiv 2505.09343, section 2.3.2, which cuts 67.8 to 67 and 1220 to about "
    "1200. Band: averages of DeepSeek's online service in February 2025."
)
METRIC, INPUT = "limit/tokens_per_second", "limit/input"
LABELS = ("input", "input_value", "base", "case", "method")
AXES = {
    "bandwidth": "bandwidth (GB/s)",
    "latency": "latency per transfer (us)",
    "hidden_size": "hidden size",
    "layers": "layers",
    "experts": "experts per token",
    "dispatch_bytes": "bytes per dispatched value",
    "combine_bytes": "bytes per combined value",
    "tokens": "tokens per device",
}
COLUMNS = 3


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that varied the inputs of the limit."""
    figures = {}
    for experiment in results.plan["experiments"]:
        rows = results.of(experiment)
        rows = rows[rows["metric"].isin([METRIC, INPUT])]
        rows = with_labels(rows, *LABELS)
        if rows["input_value"].notna().any():
            figures[f"decode_limit.{experiment}"] = (experiment, _draw(rows))
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    inputs = rows[rows["metric"] == INPUT].pivot_table(
        index="case", columns="input", values="value"
    )
    speeds = rows[rows["metric"] == METRIC]
    panels = list(speeds.groupby("input", sort=False))
    lines = math.ceil(len(panels) / COLUMNS)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=(WIDTH, 0.5 + 2.1 * lines), squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (name, swept) in zip(axes.flat, panels, strict=False):
        _limit(ax, swept, logarithmic=name == "bandwidth")
        others = inputs.drop(columns=name)
        differs_here = (others == others.loc[swept["base"].iloc[0]]).all(axis=1)
        _published(ax, speeds, inputs.loc[differs_here, name].astype(float))
        ax.set(xlabel=AXES[name])
    for ax in axes[:, 0]:
        ax.set(ylabel="tokens per second")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    return figure


def _limit(ax: Axes, swept: pd.DataFrame, logarithmic: bool) -> None:
    ordered = swept.sort_values("input_value")
    x, y = ordered["input_value"].astype(float), ordered["value"].astype(float)
    ax.plot(x, y, "o-", markersize=3, linewidth=1.4, color=colours(["limit"])["limit"],
            label="limit")  # fmt: skip
    if logarithmic:
        ax.set(xscale="log", yscale="log")
    else:
        ax.set_ylim(0, 1.08 * y.max())


def _published(ax: Axes, speeds: pd.DataFrame, places: pd.Series) -> None:
    """Mark the cases in ``places`` of which a speed is printed, and the range that was served."""
    speeds = speeds.assign(place=speeds["case"].map(places), value=speeds["value"].astype(float))
    printed = speeds[(speeds["method"] == "printed") & speeds["place"].notna()]
    closed = speeds[(speeds["method"] == "closed_form") & speeds["case"].isin(printed["case"])]
    ax.plot(closed["place"], closed["value"], "s", color="black", markersize=4,
            label="closed form, published cases")  # fmt: skip
    ax.plot(printed["place"], printed["value"], "x", color=colours(["", "printed"])["printed"],
            markersize=9, markeredgewidth=1.4, label="printed")  # fmt: skip
    served = speeds[speeds["method"] == "production"]["value"]
    ax.axhspan(served.min(), served.max(), color="0.8", label="online service")
