"""One look for all figures: an optimizer keeps its colour, dash and place in every one of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import seaborn

matplotlib.use("Agg")

DASHES: tuple[object, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MARKERS = "osD^v"
WIDTH = 7.0
HEIGHT = 3.4


@contextmanager
def house_style() -> Iterator[None]:
    """Apply fonts, grid and sizes to the figures drawn inside."""
    settings: Any = {
        "font.family": "DejaVu Sans",
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
        "svg.fonttype": "none",
        # Text in a vector file is only the same on every run with a fixed salt.
        "svg.hashsalt": "optrepro",
    }
    with seaborn.axes_style("whitegrid", {"grid.color": "0.9"}), matplotlib.rc_context(settings):
        yield


def colours(names: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Return a colour per optimizer from a palette that colour-blind readers can tell apart."""
    palette = seaborn.color_palette("colorblind")
    return {name: palette[index % len(palette)] for index, name in enumerate(names)}


def dashes(names: Sequence[str]) -> dict[str, object]:
    """Return a dash pattern per optimizer, so that colour is never the only difference."""
    return {name: DASHES[index % len(DASHES)] for index, name in enumerate(names)}


def markers(names: Sequence[str]) -> dict[str, str]:
    """Return a marker per name, so that points are told apart without colour too."""
    return {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(names)}
