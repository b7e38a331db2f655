"""What outliers in the gradients cost each optimizer."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.records.statistics import Estimate, paired_difference
from harness.reporting.conditions import describe, gradient_outliers, without_outliers
from harness.reporting.results import Results, Sweep
from harness.reporting.style import WIDTH, colours

ORDER = 32
TITLE = "Final test loss without and with gradient outliers"
METRIC = "test/loss"


def caption(results: Results) -> str:
    """Return the caption, with what was injected according to the runs themselves."""
    injected = [gradient_outliers(sweep) for sweep in results.sweeps()]
    sentences = dict.fromkeys(describe(outliers) for outliers in injected if outliers)
    return (
        f"{' '.join(sentences)} Left: without (hollow) and with outliers (filled), each at the "
        "learning rate tuned for it, mean over fresh seeds with the 95 % interval; the best with "
        "outliers is on top. Right: what the outliers cost, paired by seed."
    )


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per sweep with gradient outliers."""
    figures = {}
    for sweep in results.sweeps():
        if gradient_outliers(sweep) is not None and METRIC in set(sweep.records["metric"]):
            figures[f"gradient_outliers.{sweep.name}"] = (sweep.experiment, _draw(sweep, results))
    return figures


def _draw(sweep: Sweep, results: Results) -> Figure:
    estimates = {name: sweep.estimate(METRIC, name) for name in sweep.members}
    found = {name: estimate for name, estimate in estimates.items() if estimate is not None}
    best_last = sorted(found, key=lambda name: found[name].mean, reverse=True)
    colour = colours(results.optimizers)
    figure, (losses, costs) = plt.subplots(
        1, 2, figsize=(WIDTH, 1.2 + 0.36 * len(found)), sharey=True, width_ratios=(3, 2)
    )
    for place, name in enumerate(best_last):
        _point(losses, found[name], place - 0.14, colour[name], filled=True)
        clean = without_outliers(results, sweep, name)
        alone = clean.estimate(METRIC, name) if clean else None
        if clean is None or alone is None:
            continue
        losses.plot([alone.mean, found[name].mean], [place + 0.14, place - 0.14], color="0.7",
                    zorder=1)  # fmt: skip
        _point(losses, alone, place + 0.14, colour[name], filled=False)
        cost = paired_difference(sweep.final(METRIC, name), clean.final(METRIC, name))
        if cost is not None:
            _point(costs, cost, place, colour[name], filled=True)
    costs.axvline(0, color="0.4", linewidth=0.8)
    losses.set_yticks(range(len(best_last)), best_last)
    losses.set(xlabel="test loss (nats)", title=sweep.place)
    costs.set(xlabel="with minus without (nats)", title="cost of outliers")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _legend() -> list[Line2D]:
    return [
        Line2D([], [], marker="D", color="black", markerfacecolor=fill, linestyle="", label=label)
        for fill, label in (("white", "without outliers"), ("black", "with outliers"))
    ]


def _point(ax: Axes, estimate: Estimate, place: float, colour: object, *, filled: bool) -> None:
    width = estimate.half_width if estimate.count > 1 else None
    ax.errorbar(estimate.mean, place, xerr=width, fmt="D", color=colour, markersize=5, capsize=3,
                markerfacecolor=colour if filled else "white")  # fmt: skip
