"""How often drafted tokens are accepted, and what that gains in speed."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results, Sweep, label
from harness.reporting.style import HEIGHT, WIDTH, colours

ORDER = 45
TITLE = "Self-speculative decoding"
CAPTION = (
    "Left: share of drafted tokens that the main model accepts, by position and way of choosing; "
    "grey is the published 80 to 90 % for the second token in production. Right: tokens per second "
    "over plain decoding, measured and by (1 + p) / (1 + c) from acceptance p and draft overhead "
    "c; grey is the published 1.8. Small circles are seeds, diamonds their mean."
)
ACCEPTANCE = "mtp/acceptance"
SPEED = (("mtp/speedup", "measured"), ("mtp/speedup_model", "(1 + p) / (1 + c)"))
PUBLISHED_ACCEPTANCE = (0.8, 0.9)
PUBLISHED_SPEED = 1.8


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per sweep whose checkpoints speculated."""
    return {
        f"speculation.{sweep.name}": (sweep.experiment, _draw(sweep))
        for sweep in results.sweeps()
        if ACCEPTANCE in set(sweep.records["metric"])
    }


def _draw(sweep: Sweep) -> Figure:
    figure, (accepted, speeds) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT))
    rows = sweep.records[sweep.records["metric"] == ACCEPTANCE]
    rows = rows.assign(position=label(rows, "position"), mode=label(rows, "mode"))
    modes = list(dict.fromkeys(rows["mode"]))
    colour = colours([*modes, *(name for _, name in SPEED)])
    accepted.axhspan(*PUBLISHED_ACCEPTANCE, color="0.9", zorder=0)
    groups = list(rows.groupby(["position", "mode"], sort=True)["value"])
    for place, ((_, mode), values) in enumerate(groups):
        _seeds(accepted, place, values.astype(float), colour[mode])
    accepted.set_xticks(range(len(groups)), [f"{mode}\ntoken +{position}" for (position, mode), _
                                             in groups])  # fmt: skip
    accepted.set(ylabel="acceptance", ylim=(0, 1))
    speeds.axhline(PUBLISHED_SPEED, color="0.7", linewidth=3, zorder=0)
    speeds.axhline(1, color="0.4", linewidth=0.8)
    for place, (metric, name) in enumerate(SPEED):
        values = sweep.records.loc[sweep.records["metric"] == metric, "value"].astype(float)
        _seeds(speeds, place, values, colour[name])
    speeds.set_xticks(range(len(SPEED)), [name for _, name in SPEED])
    speeds.set(ylabel="speed over plain decoding", xlim=(-0.5, len(SPEED) - 0.5))
    speeds.set_ylim(bottom=0)
    accepted.set_xlim(-0.5, len(groups) - 0.5)
    figure.suptitle(sweep.place, fontsize=10)
    return figure


def _seeds(ax: Axes, place: int, values: pd.Series, colour: tuple) -> None:
    ax.plot([place] * len(values), values, "o", color=colour, markersize=4, markerfacecolor="white")
    ax.plot(place, values.mean(), "D", color=colour, markersize=5)
