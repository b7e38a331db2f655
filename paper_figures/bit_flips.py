"""What single bit flips do to training, by bit, by what holds it and by part of the model."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harness.reporting.results import Results, with_labels
from harness.reporting.style import WIDTH

ORDER = 90
TITLE = "Harm of single bit flips"
METRIC, NON_FINITE = "fault/validation_change", "fault/non_finite"
LABELS = ("target", "part", "bit", "gradient_clip", "precision")
# Smaller changes are as pale as none.
SMALLEST, LARGEST = 1e-3, 10.0
ENDED, ABSENT = "black", "0.85"
COLUMNS = 5


def caption(results: Results) -> str:
    """Return the caption, with how long the faults were watched according to the records."""
    rows = results.records[results.records["metric"] == NON_FINITE]
    steps = ", ".join(map(str, sorted(set(rows["step"]))))
    return (
        "Validation loss after one bit of one value flipped minus that without the fault, from the "
        f"same state and on the same batches (at step {steps}); the worst of the random places of "
        "a cell. Black: the loss is no longer a number. Grey: no such value. Gradients are hit "
        "before clipping, moments are what the optimizer keeps, activations are hit in one forward "
        "pass."
    )


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment, model, dataset and optimizer."""
    figures = {}
    for experiment, _ in results.with_metric(NON_FINITE):
        rows = results.of(experiment)
        rows = rows[rows["metric"].isin([METRIC, NON_FINITE])]
        rows = with_labels(rows, *LABELS)
        for place, some in rows.groupby(["model", "dataset", "optimizer"], sort=False):
            figures[".".join(["bit_flips", experiment, *place])] = (experiment, _draw(some))
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    parts, bits = (list(dict.fromkeys(rows[name])) for name in ("part", "bit"))
    panels = list(rows.groupby(["gradient_clip", "precision", "target"], sort=False))
    lines = math.ceil(len(panels) / COLUMNS)
    size = (WIDTH, 0.8 + lines * (1.0 + 0.13 * len(bits)))
    figure, axes = plt.subplots(lines, COLUMNS, figsize=size, squeeze=False, sharey=True)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, ((clip, precision, target), some) in zip(axes.flat, panels, strict=False):
        _cells(ax, some, bits, parts)
        clipped = "no clipping" if clip == "none" else f"clipped at {clip:g}"
        ax.set_title(f"{target.replace('_', ' ')}\n{precision}\n{clipped}", fontsize=8)
    bar = figure.colorbar(
        plt.cm.ScalarMappable(LogNorm(SMALLEST, LARGEST), _colours()), ax=axes, shrink=0.6,
        extend="both", pad=0.02,
    )  # fmt: skip
    bar.set_label("rise of the validation loss (nats)", fontsize=8)
    figure.legend(
        handles=[Patch(color=ENDED, label="not a number"), Patch(color=ABSENT, label="no value")],
        loc="outside lower center", ncols=2, frameon=False,
    )  # fmt: skip
    return figure


def _colours() -> plt.Colormap:
    return plt.get_cmap("YlOrRd").with_extremes(bad=ABSENT)


def _cells(ax: Axes, rows: pd.DataFrame, bits: list[str], parts: list[str]) -> None:
    worst = _wide(rows[rows["metric"] == METRIC], bits, parts)
    ended = _wide(rows[rows["metric"] == NON_FINITE], bits, parts)
    # Of places that ended there is no change: they are painted over.
    shown = np.where(np.isnan(ended), np.nan, np.clip(np.nan_to_num(worst), SMALLEST, LARGEST))
    ax.pcolormesh(shown, norm=LogNorm(SMALLEST, LARGEST), cmap=_colours(), edgecolors="white",
                  linewidth=0.4)  # fmt: skip
    for bit, part in zip(*np.nonzero(ended == 1), strict=True):
        ax.add_patch(plt.Rectangle((part, bit), 1, 1, facecolor=ENDED, edgecolor="white",
                                   linewidth=0.4))  # fmt: skip
    ax.set_xticks(np.arange(len(parts)) + 0.5, [part.replace("_", "-") for part in parts],
                  rotation=90, fontsize=7)  # fmt: skip
    ax.set_yticks(np.arange(len(bits)) + 0.5, [bit.replace("_", " ") for bit in bits], fontsize=7)
    ax.set_ylim(len(bits), 0)
    ax.grid(visible=False)


def _wide(rows: pd.DataFrame, bits: list[str], parts: list[str]) -> np.ndarray:
    """Return the largest value by bit and part, not a number where there is none."""
    largest = rows.astype({"value": float}).groupby(["bit", "part"])["value"].max()
    return largest.unstack().reindex(index=bits, columns=parts).to_numpy(dtype=float)
