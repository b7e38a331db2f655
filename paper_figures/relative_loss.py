"""How far low precision moves the training loss, as the published validation of FP8 shows it."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from harness.reporting.conditions import low_precision
from harness.reporting.results import Results, Sweep
from harness.reporting.style import HEIGHT, WIDTH, colours, dashes

ORDER = 15
TITLE = "Loss in low precision against the baseline"
SMOOTHING = 0.9
BOUND = 0.0025
CAPTION = (
    "Training loss relative to the baseline's of the same seed, both smoothed (exponential moving "
    f"average, {SMOOTHING}, over the recorded steps); bands span the seeds. Grey: the "
    "published bound of ± 0.25 % for FP8."
)


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per sweep over models of which some compute or send in fewer bits."""
    return {
        f"relative_loss.{sweep.name}": (sweep.experiment, _draw(sweep))
        for sweep in results.sweeps()
        if sweep.baseline in sweep.members and low_precision(sweep)
    }


def _draw(sweep: Sweep) -> Figure:
    figure, ax = plt.subplots(figsize=(WIDTH, HEIGHT))
    colour, dash = colours(sweep.palette), dashes(sweep.palette)
    reference = _smoothed(sweep, sweep.baseline)
    ax.axhspan(-100 * BOUND, 100 * BOUND, color="0.9", zorder=0)
    ax.axhline(0, color="0.4", linewidth=0.8)
    for name in sweep.members:
        if name == sweep.baseline:
            continue
        percent = 100 * (_smoothed(sweep, name) / reference - 1)
        mean, low, high = (getattr(percent, kind)(axis=1) for kind in ("mean", "min", "max"))
        ax.plot(percent.index, mean, label=name, color=colour[name], linestyle=dash[name],
                linewidth=1.4)  # fmt: skip
        ax.fill_between(percent.index, low, high, color=colour[name], alpha=0.15, lw=0)
    ax.set(xlabel="optimizer step", ylabel=f"training loss against {sweep.baseline} (%)")
    ax.set_title(sweep.place)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def _smoothed(sweep: Sweep, name: str) -> pd.DataFrame:
    """Return the smoothed training loss (steps x seeds)."""
    rows = sweep.records[
        (sweep.records["metric"] == "train/loss")
        & (sweep.records["role"] == "reporting")
        & (sweep.records[sweep.factor] == name)
    ]
    losses = rows.pivot_table(index="step", columns="seed", values="value").astype(float)
    losses.index = losses.index.astype(int)
    return losses.ewm(alpha=1 - SMOOTHING).mean()
