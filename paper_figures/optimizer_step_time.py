"""Time of one optimizer step relative to the baseline, round by round."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from harness.reporting.results import Results
from harness.reporting.style import WIDTH, colours
from harness.reporting.tables import step_ratios

ORDER = 50
TITLE = "Time of one optimizer step"
CAPTION = (
    "Time over the baseline's time in the same round, all optimizers in turn in one process; boxes "
    "hold the middle half of the rounds."
)


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per measured model."""
    figures = {}
    for experiment, entry in results.plan["experiments"].items():
        if entry["kind"] == "measure":
            for model, records in results.of(experiment).groupby("model", sort=False):
                ratios = step_ratios(records, entry["baseline"])
                figure = _draw(ratios, f"{model}", entry["baseline"], results)
                figures[f"optimizer_step_time.{model}"] = (experiment, figure)
    return figures


def _draw(ratios, model: str, baseline: str, results: Results) -> Figure:  # type: ignore[no-untyped-def]
    order = list(ratios.median().sort_values(ascending=False).index)
    colour = colours(results.optimizers)
    figure, ax = plt.subplots(figsize=(WIDTH, 0.8 + 0.32 * len(order)))
    for place, name in enumerate(order):
        values = ratios[name].to_numpy(dtype=float)
        box = ax.boxplot(values[np.isfinite(values)], positions=[place], orientation="horizontal",
                         widths=0.55, showfliers=False, patch_artist=True)  # fmt: skip
        box["boxes"][0].set(facecolor=(*colour[name], 0.35), edgecolor=colour[name])
        box["medians"][0].set(color="black")
    ax.axvline(1, color="0.4", linewidth=0.8)
    ax.set_yticks(range(len(order)), order)
    ax.set(xscale="log", xlabel=f"time of a step / {baseline}'s", title=f"parameters of {model}")
    ax.xaxis.set_major_formatter("{x:g}")
    return figure
