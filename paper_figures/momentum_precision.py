"""How exactly each set of coefficients orthogonalises what training orthogonalises."""

from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.reporting.recorded import LAYERS, recorded, shown_optimizer
from harness.reporting.results import Results, Sweep
from harness.reporting.style import WIDTH, colours

ORDER = 62
TITLE = "Orthogonalisation error over training"
CAPTION = (
    "Relative Frobenius error after five steps in float64, on the matrices (momentum with Nesterov "
    "mix, before ROOT's outlier filter) that runs with the named optimizer orthogonalised: mean "
    "over layers and seeds, bands span the seeds. MLP up is without the gate; query, key and value "
    "are matrices of their own here and one fused matrix in ROOT's released model. Pale: the "
    "published figure (10,000 steps), read off it to about 0.003 (0.01 for its first two points)."
)
METRIC = "orthogonalization/error"
NAMES = {"cubic": "classic Newton-Schulz", "muon": "Muon", "root": "ROOT"}
# Read off the published figure: a column per panel and curve.
PUBLISHED = Path(__file__).with_name("root_precision_figure.csv")
PANELS = {
    "mlp_up": "MLP_Up",
    "mlp_down": "MLP_Down",
    "attention_qkv": "Attn_QKV",
    "attention_out": "Attn_Out",
}
CURVES = {"cubic": "classic", "muon": "muon", "root": "root"}
MARKERS = ("o", "x", "^", "D", "s", "v")


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per sweep that recorded, without repeating model, dataset and curves."""
    figures, drawn = {}, set()
    for sweep in results.sweeps():
        rows = recorded(sweep, METRIC, ("layer", "coefficients"))
        rows = rows[rows["optimizer"] == shown_optimizer(rows)]
        shown = (sweep.fixed, sweep.dataset, frozenset(rows["coefficients"]))
        if not rows.empty and shown not in drawn:
            drawn.add(shown)
            steps = results.plan["experiments"][sweep.experiment]["steps"]
            figure = _draw(sweep, rows, steps, results)
            figures[f"momentum_precision.{sweep.name}"] = (sweep.experiment, figure)
    return figures


def _draw(sweep: Sweep, rows: pd.DataFrame, steps: int, results: Results) -> Figure:
    figure, axes = plt.subplots(1, len(LAYERS), figsize=(WIDTH, 3.0), sharey=True)
    published = pd.read_csv(PUBLISHED)
    names = list(dict.fromkeys(rows["coefficients"]))
    # Muon's coefficients have Muon's colour, also where nothing was trained with it.
    colour = colours(list(dict.fromkeys([*results.optimizers, *names])))
    colour["cubic"] = (0.3, 0.3, 0.3)
    for ax, (layer, title) in zip(axes, LAYERS.items(), strict=True):
        for name, marker in zip(names, cycle(MARKERS), strict=False):
            if name in CURVES:
                values = published[f"{PANELS[layer]}:{CURVES[name]}"]
                ax.plot(published["step"] / published["step"].max(), values, marker,
                        color=colour[name], alpha=0.3, markersize=3)  # fmt: skip
            some = rows[(rows["layer"] == layer) & (rows["coefficients"] == name)]
            _curve(ax, some, steps, NAMES.get(name, name), colour[name], marker)
        ax.set(title=title, yscale="log", xlim=(-0.06, 1.06), xlabel="share of training")
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
    axes[0].set_ylabel("relative error")
    optimizer = rows["optimizer"].iloc[0]
    figure.suptitle(f"{sweep.place}, trained with {optimizer}", fontsize=10)
    handles, _ = axes[0].get_legend_handles_labels()
    pale = Line2D([], [], linestyle="", marker="o", color="0.8", markersize=4, label="published")
    figure.legend(handles=[*handles, pale], loc="outside lower center", ncols=len(names) + 1,
                  frameon=False)  # fmt: skip
    return figure


def _curve(ax: Axes, rows: pd.DataFrame, steps: int, name: str, colour: tuple, marker: str) -> None:
    spread = rows.groupby("step")["value"].agg(["mean", "min", "max"]).astype(float)
    share = spread.index.to_numpy(dtype=float) / steps
    ax.plot(share, spread["mean"], color=colour, marker=marker, markersize=3.5, linewidth=1.2,
            label=name)  # fmt: skip
    ax.fill_between(share, spread["min"], spread["max"], color=colour, alpha=0.2, lw=0)
