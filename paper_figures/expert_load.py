"""How even the load of experts is over training, and what that costs in loss."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from harness.reporting.results import Results, Sweep
from harness.reporting.style import HEIGHT, WIDTH, colours, dashes

ORDER = 16
TITLE = "Load of the experts"
CAPTION = (
    "MaxVio, the most loaded expert's tokens over the mean, minus one (0 is even), averaged over "
    "layers and seeds: over training, and at its end against the test loss with 95 % intervals."
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
    figure, (curves, ends) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT))
    colour, dash = colours(sweep.palette), dashes(sweep.palette)
    rows = sweep.records[
        (sweep.records["metric"] == VIOLATION) & (sweep.records["role"] == "reporting")
    ]
    for name in sweep.members:
        mean = rows[rows[sweep.factor] == name].groupby("step")["value"].mean().astype(float)
        load, loss = sweep.estimate(VIOLATION, name), sweep.estimate(LOSS, name)
        if load is None or loss is None:
            continue
        curves.plot(mean.index.to_numpy(dtype=int), mean, label=name, color=colour[name],
                    linestyle=dash[name], linewidth=1.4)  # fmt: skip
        several = load.count > 1
        ends.errorbar(load.mean, loss.mean, xerr=load.half_width if several else None,
                      yerr=loss.half_width if several else None, fmt="D", color=colour[name],
                      markersize=5, capsize=3)  # fmt: skip
    curves.set(xlabel="optimizer step", ylabel="MaxVio")
    curves.set_ylim(bottom=0)
    ends.set(xlabel="MaxVio at the end", ylabel="test loss (nats)")
    figure.legend(*curves.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(sweep.place, fontsize=10)
    return figure
