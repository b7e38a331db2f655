"""Validation loss against learning rate: how much tuning each optimizer needs."""

import math

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from harness.reporting.results import Results, Sweep
from harness.reporting.style import HEIGHT, WIDTH, colours, dashes

ORDER = 20
TITLE = "Sensitivity to the learning rate"
CAPTION = (
    "Final validation loss of the tuning runs; the chosen rate is filled. A triangle on the upper "
    "edge is a rate at which a run did not complete."
)


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per sweep."""
    return {
        f"learning_rate_sensitivity.{sweep.name}": (sweep.experiment, _draw(sweep, results))
        for sweep in results.sweeps()
        if any(sweep.tuning(name).best is not None for name in sweep.members)
    }


def _draw(sweep: Sweep, results: Results) -> Figure:
    figure, ax = plt.subplots(figsize=(WIDTH, HEIGHT))
    colour, dash = colours(sweep.palette), dashes(sweep.palette)
    failed = []
    for optimizer in sweep.members:
        tuning = sweep.tuning(optimizer)
        finite = {rate: loss for rate, loss in tuning.losses.items() if math.isfinite(loss)}
        failed += [(rate, optimizer) for rate in tuning.losses if rate not in finite]
        ax.plot(list(finite), list(finite.values()), label=optimizer, color=colour[optimizer],
                linestyle=dash[optimizer], marker="o", markersize=4, markerfacecolor="white",
                linewidth=1.4)  # fmt: skip
        if tuning.best is not None:
            ax.plot(tuning.best, finite[tuning.best], "o", color=colour[optimizer], markersize=6)
    ax.set(xscale="log", xlabel="learning rate", ylabel="final validation loss (nats)")
    top = ax.get_ylim()[1]
    for rate, optimizer in failed:
        ax.plot(rate, top, "^", color=colour[optimizer], markersize=7, clip_on=False)
    ax.set_title(sweep.place)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure
