"""What fills the memory of a device when models are trained and served."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results, with_labels
from harness.reporting.style import WIDTH, colours

ORDER = 81.5
TITLE = "Memory of training and inference"
CAPTION = (
    "The device that holds most, under published and chosen parallel layouts (the experiment's "
    "file says which is which). Parameters are those of the built models, activations those that "
    "autograd saves in the decoder of this repository, counted on its tensors at full size, times "
    "the micro-batches that the pipeline schedule holds. Ticks: memory of a device. Communication "
    "buffers, workspace and what an allocator loses are left out."
)
METRIC, DEVICE = "memory/of", "memory/device"
LABELS = ("case", "phase", "kind", "statistic")
KINDS = {
    "weights": "weights",
    "gradients": "gradients",
    "master_weights": "master weights",
    "moments": "moments",
    "activations": "activations",
    "cache": "key-value cache",
}
PHASES = ("training", "inference")
BAR, ROW = 0.72, 0.24


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that computed the memory of deployments."""
    figures = {}
    for experiment in results.plan["experiments"]:
        rows = results.of(experiment)
        rows = rows[rows["metric"].isin([METRIC, DEVICE])]
        if not rows.empty:
            rows = with_labels(rows, *LABELS)
            figures[f"model_memory.{experiment}"] = (experiment, _draw(rows))
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    phases = [phase for phase in PHASES if (rows["phase"] == phase).any()]
    counts = [rows[rows["phase"] == phase]["case"].nunique() for phase in phases]
    figure, axes = plt.subplots(
        len(phases), 1, figsize=(WIDTH, 0.9 + 0.5 * len(phases) + ROW * sum(counts)),
        height_ratios=counts, squeeze=False,
    )  # fmt: skip
    handles: dict[str, Artist] = {}
    for ax, phase in zip(axes.flat, phases, strict=True):
        _panel(ax, rows[rows["phase"] == phase])
        ax.set_title(phase, loc="left")
        artists, labels = ax.get_legend_handles_labels()
        handles |= dict(zip(labels, artists, strict=True))
    axes[-1, 0].set(xlabel="GB (1e9 bytes) per device")
    names = [name for name in (*KINDS.values(), "device") if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    return figure


def _panel(ax: Axes, rows: pd.DataFrame) -> None:
    sizes = rows[(rows["metric"] == METRIC) & (rows["statistic"] == "largest")]
    wide = sizes.pivot_table(index="case", columns="kind", values="value", aggfunc="sum",
                             sort=False).astype(float).fillna(0.0)  # fmt: skip
    colour = colours(list(KINDS))
    left = pd.Series(0.0, index=wide.index)
    for kind, text in KINDS.items():
        if kind in wide and wide[kind].any():
            ax.barh(range(len(wide)), wide[kind], BAR, left=left, color=colour[kind], label=text)
            left = left + wide[kind]
    room = rows[rows["metric"] == DEVICE].set_index("case")["value"].astype(float)
    ax.plot(room[wide.index], range(len(wide)), "|", color="black", markersize=12,
            markeredgewidth=1.8, label="device")  # fmt: skip
    ax.set_yticks(range(len(wide)), list(wide.index))
    ax.set_ylim(len(wide) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.margins(x=0.04)
