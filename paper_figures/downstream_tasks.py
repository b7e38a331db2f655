"""Zero-shot scores after training, one panel per task."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from harness.reporting.results import Results, Sweep
from harness.reporting.style import WIDTH, colours

ORDER = 40
TITLE = "Zero-shot tasks after training"
CAPTION = "lm-eval scores: mean over training seeds with the 95 % interval."
SHOWN = ("acc_norm", "acc", "bits_per_byte")


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per sweep whose checkpoints were evaluated."""
    figures = {}
    for sweep in results.sweeps():
        metrics = _one_metric_per_task(sweep)
        if metrics:
            figure = _draw(sweep, metrics, results)
            figures[f"downstream_tasks.{sweep.name}"] = (sweep.experiment, figure)
    return figures


def _one_metric_per_task(sweep: Sweep) -> list[str]:
    names = sorted(set(sweep.records["metric"]))
    tasks = sorted({name.split("/")[1] for name in names if name.startswith("lm_eval/")})
    scored = [task for task in tasks if f"lm_eval/{task}/acc" in names]
    if len(scored) == 2:
        # The average of a single task is that task.
        tasks.remove("average")
    chosen = []
    for task in tasks:
        present = [f"lm_eval/{task}/{kind}" for kind in SHOWN if f"lm_eval/{task}/{kind}" in names]
        chosen += present[:1]
    return chosen


def _draw(sweep: Sweep, metrics: list[str], results: Results) -> Figure:
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    size = (WIDTH, rows * (0.9 + 0.26 * len(sweep.members)))
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    colour = colours(sweep.palette)
    order = sweep.members[::-1]
    for ax in axes.flat[len(metrics) :]:
        ax.set_visible(False)
    for ax, metric in zip(axes.flat, metrics, strict=False):
        for place, name in enumerate(order):
            estimate = sweep.estimate(metric, name)
            if estimate is not None:
                width = estimate.half_width if estimate.count > 1 else None
                ax.errorbar(estimate.mean, place, xerr=width, fmt="D", color=colour[name],
                            markersize=5, capsize=3)  # fmt: skip
        _, task, kind = metric.split("/")
        ax.set(title=task, xlabel=kind.replace("_", " "))
        ax.set_yticks(range(len(order)), order)
    return figure
