"""How gradients are distributed: are there outliers for ROOT's filter to remove?"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from harness.reporting.recorded import recorded, shown_optimizer
from harness.reporting.results import Results, Sweep
from harness.reporting.style import HEIGHT, WIDTH, colours

ORDER = 5
TITLE = "Distribution of gradients"
CAPTION = (
    "Gradients of the hidden matrices halfway through training, before clipping, each matrix with "
    "its own mean and deviation taken out, pooled over matrices and seeds. Left: their density "
    "beside the normal one. Right: their quantiles against normal quantiles, mean over seeds; "
    "without outliers they would lie on the line."
)
COUNTS, QUANTILES = "gradient/histogram", "gradient/quantile"


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per model and dataset, from the first sweep that recorded gradients."""
    figures, drawn = {}, set()
    for sweep in results.sweeps():
        counts = recorded(sweep, COUNTS, ("lower",))
        counts = counts[counts["optimizer"] == shown_optimizer(counts)]
        shown = (sweep.fixed, sweep.dataset)
        if not counts.empty and shown not in drawn:
            drawn.add(shown)
            quantiles = recorded(sweep, QUANTILES, ("probability",))
            quantiles = quantiles[quantiles["run_id"].isin(counts["run_id"])]
            figure = _draw(sweep, counts, quantiles, results)
            figures[f"gradient_distribution.{sweep.name}"] = (sweep.experiment, figure)
    return figures


def _draw(sweep: Sweep, counts: pd.DataFrame, quantiles: pd.DataFrame, results: Results) -> Figure:
    optimizer, step = counts["optimizer"].iloc[0], int(counts["step"].iloc[0])
    colour = colours(results.optimizers)[optimizer]
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT))
    _density(left, counts, colour)
    means = quantiles.groupby("probability")["value"].mean().astype(float)
    normal = norm.ppf(means.index.to_numpy(dtype=float))
    right.plot(normal, normal, color="0.4", linewidth=0.8)
    right.plot(normal, means, "o", color=colour, markersize=4)
    right.set(xlabel="normal quantile", ylabel="gradient quantile (standard deviations)")
    figure.suptitle(f"{sweep.place}, trained with {optimizer}, step {step}", fontsize=10)
    return figure


def _density(ax: Axes, counts: pd.DataFrame, colour: tuple) -> None:
    total = counts.groupby("lower")["value"].sum().astype(float)
    lower = total.index.to_numpy(dtype=float)
    width = np.diff(lower).min()
    density = total.to_numpy() / total.sum() / width
    ax.bar(lower, density, width, align="edge", color=colour, alpha=0.6, linewidth=0,
           label="gradients")  # fmt: skip
    grid = np.linspace(lower.min(), lower.max() + width, 400)
    floor = density.min() / 2
    inside = norm.pdf(grid) > floor
    ax.plot(grid[inside], norm.pdf(grid[inside]), color="0.2", linewidth=1.2, label="normal")
    ax.set(yscale="log", ylim=(floor, None), xlabel="gradient (standard deviations)",
           ylabel="density")  # fmt: skip
    ax.legend(frameon=False)
