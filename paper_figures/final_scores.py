"""The final score of every optimizer with its interval and its seeds."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from harness.reporting.results import Results, Sweep, higher_is_better
from harness.reporting.style import WIDTH, colours

ORDER = 30
TITLE = "Final scores on the test split"
CAPTION = (
    "Mean over fresh seeds with the 95 % interval; every small circle is one seed. The best mean "
    "is on top."
)
NAMES = {"test/accuracy": "test accuracy", "test/loss": "test loss (nats)"}


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per sweep."""
    figures = {}
    for sweep in results.sweeps():
        metric = sweep.primary_metric
        if metric is not None:
            figure = _draw(sweep, metric, results)
            figures[f"final_scores.{sweep.name}"] = (sweep.experiment, figure)
    return figures


def _draw(sweep: Sweep, metric: str, results: Results) -> Figure:
    estimates = {name: sweep.estimate(metric, name) for name in sweep.members}
    found = {name: estimate for name, estimate in estimates.items() if estimate is not None}
    best_last = sorted(
        found, key=lambda name: found[name].mean, reverse=not higher_is_better(metric)
    )
    colour = colours(sweep.palette)
    figure, ax = plt.subplots(figsize=(WIDTH, 0.8 + 0.32 * len(found)))
    for place, name in enumerate(best_last):
        estimate = found[name]
        seeds = list(sweep.final(metric, name).values())
        ax.plot(seeds, [place] * len(seeds), "o", color=colour[name], markersize=4,
                markerfacecolor="white")  # fmt: skip
        ax.errorbar(estimate.mean, place, xerr=estimate.half_width if estimate.count > 1 else None,
                    fmt="D", color=colour[name], markersize=5, capsize=3)  # fmt: skip
    ax.set_yticks(range(len(best_last)), best_last)
    ax.set(xlabel=NAMES[metric], title=sweep.place)
    ax.margins(y=0.08)
    return figure
