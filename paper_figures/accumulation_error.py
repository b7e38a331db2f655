"""The error of FP8 dot products on hardware that keeps few bits of their sums."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results, with_labels
from harness.reporting.style import HEIGHT, WIDTH, colours

ORDER = 71
TITLE = "Error of FP8 dot products with limited accumulation"
CAPTION = (
    "Largest error over the largest of the exact sums, emulated: products of E4M3 values, added in "
    "groups to a register that keeps the given fraction bits and cuts off the rest; 'promoted': "
    "the register moves to a float32 sum at fixed intervals. Mean over seeds; bands span the "
    "lowest and highest. Both operands have the distribution of the panel. The cross is the "
    "published 'nearly 2 %' for random matrices with K = 4096 (DeepSeek-V3, section 3.3.2), whose "
    "distribution and definition of the error are not published."
)
METRIC = "accumulation/max_error"
LABELS = ("distribution", "length", "fraction_bits", "promotion")
# DeepSeek-V3, section 3.3.2.
PUBLISHED_LENGTH, PUBLISHED_ERROR = 4096, 0.02
LIMITED: dict[str, Any] = {"linestyle": "-", "marker": "o"}
PROMOTED: dict[str, Any] = {"linestyle": (0, (5, 1.5)), "marker": "s"}


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that emulated accumulation."""
    return {
        f"accumulation_error.{experiment}": (experiment, _draw(records))
        for experiment, records in results.with_metric(METRIC)
    }


def _draw(records: pd.DataFrame) -> Figure:
    frame = with_labels(records, *LABELS)
    # An exact sum has no place on a logarithmic axis.
    frame = frame[frame["value"] > 0]
    panels = frame.groupby("distribution", sort=False)
    colour = colours([str(bits) for bits in sorted(set(frame["fraction_bits"]))])
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, HEIGHT), sharex=True, sharey=True, squeeze=False
    )
    for ax, (distribution, some) in zip(axes.flat, panels, strict=True):
        for (bits, promotion), rows in some.groupby(["fraction_bits", "promotion"], sort=False):
            _curve(ax, rows, _name(bits, promotion), colour[str(bits)], promotion)
        ax.axhline(PUBLISHED_ERROR, color="0.4", linewidth=0.8, linestyle=(0, (1, 1)))
        ax.plot(PUBLISHED_LENGTH, PUBLISHED_ERROR, "x", color="black", linestyle="",
                label="published, nearly 2 %")  # fmt: skip
        ax.set(xlabel="K", title=str(distribution).replace("_", " "), yscale="log")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    axes[0, 0].set(ylabel="largest relative error")
    # A dictionary, so that what several panels show is named once.
    handles = {name: handle for ax in axes.flat
               for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3,
                  frameon=False)  # fmt: skip
    return figure


def _curve(ax: Axes, rows: pd.DataFrame, name: str, colour: Any, promotion: int | str) -> None:
    spread = rows.groupby("length")["value"].agg(["mean", "min", "max"]).astype(float)
    lengths = spread.index.to_numpy(dtype=int)
    style = LIMITED if promotion == "none" else PROMOTED
    ax.plot(lengths, spread["mean"], color=colour, label=name, markersize=4, linewidth=1.4, **style)
    ax.fill_between(lengths, spread["min"], spread["max"], color=colour, alpha=0.15, lw=0)


def _name(bits: int, promotion: int | str) -> str:
    kind = "limited" if promotion == "none" else f"promoted every {promotion}"
    return f"{bits} fraction bits, {kind}"
