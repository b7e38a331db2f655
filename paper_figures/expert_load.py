"""How even the load of experts is over training, layer by layer, and what that costs in loss."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results, Sweep
from harness.reporting.style import WIDTH, colours, dashes

ORDER = 16
TITLE = "Load of the experts"
CAPTION = (
    "MaxVio, the most loaded expert's tokens over the mean, minus one (0 is even); the entropy of "
    "the load (1 is even); the share of experts that get no token in a step. Thick: mean over "
    "layers; thin: each layer; all are means over the seeds. Last: test loss against MaxVio at the "
    "end, with 95 % intervals."
)
MEASURES = (
    ("max_violation", "MaxVio"),
    ("load_entropy", "entropy of the load"),
    ("dead_experts", "dead experts"),
)
VIOLATION = "train/moe/max_violation"
LOSS = "test/loss"


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per sweep that trained experts in at least two ways."""
    figures = {}
    for sweep in results.sweeps():
        rows = sweep.records[sweep.records["metric"] == VIOLATION]
        if rows[sweep.factor].nunique() > 1:
            figures[f"expert_load.{sweep.name}"] = (sweep.experiment, _draw(sweep))
    return figures


def _draw(sweep: Sweep) -> Figure:
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 0.75 * WIDTH))
    for ax, (measure, name) in zip(axes.flat, MEASURES, strict=False):
        _curves(ax, sweep, measure)
        ax.set(xlabel="optimizer step", ylabel=name)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    _ends(axes.flat[-1], sweep)
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(sweep.place, fontsize=10)
    return figure


def _curves(ax: Axes, sweep: Sweep, measure: str) -> None:
    colour, dash = colours(sweep.palette), dashes(sweep.palette)
    rows = sweep.records[
        (sweep.records["role"] == "reporting")
        & sweep.records["metric"].str.fullmatch(rf"train/moe/(layer_\d+/)?{measure}")
    ]
    means = rows.groupby([sweep.factor, "metric", "step"])["value"].mean().astype(float)
    for (name, metric), values in means.groupby([sweep.factor, "metric"]):
        steps = values.index.get_level_values("step").to_numpy(dtype=int)
        thick = metric == f"train/moe/{measure}"
        ax.plot(steps, values, color=colour[name], linestyle=dash[name] if thick else "-",
                linewidth=1.6 if thick else 0.5, alpha=1 if thick else 0.6,
                label=name if thick else None)  # fmt: skip


def _ends(ax: Axes, sweep: Sweep) -> None:
    colour = colours(sweep.palette)
    for name in sweep.members:
        load, loss = sweep.estimate(VIOLATION, name), sweep.estimate(LOSS, name)
        if load is None or loss is None:
            continue
        several = load.count > 1
        ax.errorbar(load.mean, loss.mean, xerr=load.half_width if several else None,
                    yerr=loss.half_width if several else None, fmt="D", color=colour[name],
                    markersize=5, capsize=3)  # fmt: skip
    ax.set(xlabel="MaxVio at the end", ylabel="test loss (nats)")
