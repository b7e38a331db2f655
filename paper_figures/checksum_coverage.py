"""What checksums of a matrix product notice, and what they cost."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.reporting.results import Results, with_labels
from harness.reporting.style import DASHES, WIDTH, colours, markers

ORDER = 91
TITLE = "Bit flips that checksums of a matrix product notice, and their cost"
CAPTION = (
    "Top: share of single bit flips that the sums of the product give away, by bit from the sign "
    "(left) to the last of the mantissa; mean over distributions and seeds. Flips hit an input "
    "after its checksums were taken, the sum of the first half of the products, or the finished "
    "product. Bottom left: the largest change of the product, over its Frobenius norm, by a flip "
    "that was overlooked, of all dtypes and distributions. Bottom right: time of a checked "
    "square product over that of a plain one in the same round on this machine, median and middle "
    "half, and the same of the operations by closed form."
)
DETECTED, MISSED = "checksum/detected", "checksum/largest_missed"
RATIO, EXTRA = "checksum/time_over_plain", "checksum/extra_operations"
LABELS = ("dtype", "target", "bit", "bound", "size")
BOUNDS = ("probabilistic", "deterministic")


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment with checksummed products."""
    figures = {}
    for experiment, _ in results.with_metric(DETECTED):
        rows = results.of(experiment)
        rows = with_labels(rows, *LABELS)
        figures[f"checksum_coverage.{experiment}"] = (
            experiment,
            _draw(rows.astype({"value": float})),
        )
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    detected = rows[rows["metric"] == DETECTED]
    dtypes = list(dict.fromkeys(detected["dtype"]))
    targets = list(dict.fromkeys(detected["target"]))
    # The longest words have all bits.
    bits = max((list(dict.fromkeys(some["bit"])) for _, some in detected.groupby("dtype")), key=len)
    figure = plt.figure(figsize=(WIDTH, 5.2))
    grid = figure.add_gridspec(2, 2 * len(dtypes))
    top = [figure.add_subplot(grid[0, 2 * i : 2 * i + 2]) for i in range(len(dtypes))]
    for ax, dtype in zip(top, dtypes, strict=True):
        _coverage(ax, detected[detected["dtype"] == dtype], bits, targets)
        ax.set(title=dtype, ylim=(-0.03, 1.03))
    top[0].set(ylabel="share detected")
    half = len(dtypes)
    _missed(figure.add_subplot(grid[1, :half]), rows[rows["metric"] == MISSED], bits, targets)
    _cost(figure.add_subplot(grid[1, half:]), rows, dtypes)
    figure.legend(
        handles=_legend(targets),
        loc="outside lower center",
        ncols=5,
        frameon=False,
        handlelength=2.8,
    )
    return figure


def _coverage(ax: Axes, rows: pd.DataFrame, bits: list[str], targets: list[str]) -> None:
    share = rows.groupby(["target", "bound", "bit"])["value"].mean()
    _lines(ax, share, bits, targets)


def _missed(ax: Axes, rows: pd.DataFrame, bits: list[str], targets: list[str]) -> None:
    _lines(ax, rows.groupby(["target", "bound", "bit"])["value"].max(), bits, targets)
    ax.set(yscale="log", ylabel="largest change missed", title="overlooked")


def _lines(ax: Axes, values: pd.Series, bits: list[str], targets: list[str]) -> None:
    colour = colours(targets)
    for target in targets:
        for bound, dash in zip(BOUNDS, DASHES, strict=False):
            if (target, bound) in values.index.droplevel("bit"):
                line = values[target, bound].reindex(bits)
                ax.plot(range(len(bits)), line, color=colour[target], linestyle=dash, marker=".",
                        markersize=3, linewidth=1.2)  # fmt: skip
    shown = [i for i, bit in enumerate(bits) if bit in
             ("sign", "exponent_4", "exponent_0", "mantissa_4", "mantissa_8",
              "mantissa_12", "mantissa_16", "mantissa_20")]  # fmt: skip
    names = [_short(bits[i]) for i in shown]
    ax.set_xticks(shown, names)
    ax.set_xlim(-0.5, len(bits) - 0.5)
    ax.set(xlabel="bit")


def _short(bit: str) -> str:
    kind, _, number = bit.partition("_")
    return {"sign": "±", "exponent": "e", "mantissa": "m"}[kind] + number


def _cost(ax: Axes, rows: pd.DataFrame, dtypes: list[str]) -> None:
    ratios, extra = rows[rows["metric"] == RATIO], rows[rows["metric"] == EXTRA]
    colour = colours(["", "", "", *dtypes])
    for dtype, marker in markers(dtypes).items():
        quartiles = ratios[ratios["dtype"] == dtype].groupby("size")["value"]
        low, middle, high = (quartiles.quantile(share) for share in (0.25, 0.5, 0.75))
        ax.errorbar(middle.index.astype(int), middle, yerr=[middle - low, high - middle],
                    fmt=f"{marker}-", color=colour[dtype], markersize=4, linewidth=1.2, capsize=2,
                    label=f"time, {dtype}")  # fmt: skip
    closed = extra.groupby("size")["value"].first() + 1
    ax.plot(closed.index.astype(int), closed, "--", color="0.3", label="operations")
    sizes = sorted(closed.index.astype(int))
    ax.set(xscale="log", xlabel="size", ylabel="over the plain product", title="cost")
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xticks(sizes, list(map(str, sizes)))
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=7)


def _legend(targets: list[str]) -> list[Line2D]:
    colour = colours(targets)
    hit = [Line2D([], [], color=colour[target], label=target) for target in targets]
    return hit + [
        Line2D([], [], color="black", linestyle=dash, label=f"{bound} bound")
        for bound, dash in zip(BOUNDS, DASHES, strict=False)
    ]
