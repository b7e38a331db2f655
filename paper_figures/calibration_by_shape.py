"""Errors of all coefficients on Gaussian matrices, shape by shape."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.reporting.results import Results, with_labels
from harness.reporting.style import WIDTH, colours

ORDER = 61
TITLE = "Coefficients by matrix shape"
CAPTION = (
    "Relative Frobenius error after all steps on Gaussian matrices, mean over draws that no fit "
    "saw. 'published': ROOT's released code; 'fitted': the best triple that never loses a singular "
    "value; 'unconstrained': the best of all. A cross marks triples that can lose singular values "
    "below one. Coefficients without a colour are the same for all shapes."
)
ERROR, STABLE = "orthogonalization/error", "orthogonalization/stable_up_to"
KINDS = {"published": "D", "fitted": "o", "unconstrained": "s"}
FIXED = "fixed"


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per calibration experiment."""
    figures = {}
    for experiment, entry in results.plan["experiments"].items():
        records = results.of(experiment)
        if entry["kind"] == "compute" and ERROR in set(records["metric"]):
            figures[experiment] = (experiment, _draw(records))
    return figures


def _draw(records: pd.DataFrame) -> Figure:
    names = ("rows", "columns", "coefficients")
    frame = with_labels(records, *names)
    wide = frame.pivot_table(index=list(names), columns="metric", values="value", sort=False)
    wide = wide.reindex(columns=[ERROR, STABLE]).astype(float)
    shapes = list(dict.fromkeys((rows, columns) for rows, columns, _ in wide.index))
    order = list(dict.fromkeys(wide.index.get_level_values("coefficients")))[::-1]
    size = (WIDTH, 1.3 + 0.19 * len(order))
    figure, axes = plt.subplots(
        1, len(shapes), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for ax, shape in zip(axes.flat, shapes, strict=True):
        _panel(ax, wide.loc[shape], order)
        ax.set_title(f"{shape[0]} x {shape[1]}")
    axes[0, 0].set_yticks(range(len(order)), order)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, order: list[str]) -> None:
    for place, name in enumerate(order):
        error = rows[ERROR].get(name, np.nan)
        if not np.isfinite(error):
            # An overflow has no place on the axis.
            continue
        kind = _kind(name)
        ax.plot(error, place, KINDS.get(kind, "o"), color=_COLOUR[kind], markersize=5)
        if rows[STABLE][name] < 1:
            ax.plot(error, place, "x", color="black", markersize=8)
    ax.set(xscale="log", xlabel="relative error")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")


def _kind(name: str) -> str:
    return next((kind for kind in KINDS if name.startswith(kind)), FIXED)


_COLOUR = {FIXED: (0.6, 0.6, 0.6)} | colours(list(KINDS))


def _legend() -> list[Line2D]:
    kinds = {FIXED: "o", **KINDS}
    marks = [Line2D([], [], linestyle="", marker=marker, color=_COLOUR[kind], label=kind)
             for kind, marker in kinds.items()]  # fmt: skip
    return [*marks, Line2D([], [], linestyle="", marker="x", color="black", label="unstable")]
