"""Training operations per token by closed form, beside what was printed."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from harness.reporting.results import Results, with_labels
from harness.reporting.style import WIDTH, colours

ORDER = 81
TITLE = "Training compute per token"
CAPTION = (
    "Forward and backward operations by closed form, 6 per parameter in matrix products plus "
    "attention: the lower triangle (causal) or the square (full); recomputation, input embedding "
    "and multi-token prediction left out. Black ticks: printed in arXiv 2505.09343, table 2, with "
    "the difference of the causal closed form. Rings: what the speed of the training run in table "
    "4 comes to."
)
METRIC = "training/flops_per_token"
LABELS = ("attention", "method", "prediction")
ATTENTIONS = ("causal", "full")
BAR = 0.36


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that counted operations of models with printed ones."""
    figures = {}
    for experiment in results.plan["experiments"]:
        rows = results.of(experiment)
        rows = rows[rows["metric"] == METRIC]
        rows = with_labels(rows, *LABELS)
        rows = rows[rows["prediction"] == "left out"]
        printed = rows[rows["method"] == "printed"].set_index("model")["value"].sort_values()
        if not printed.empty:
            figures[f"training_compute.{experiment}"] = (experiment, _draw(rows, printed))
    return figures


def _draw(rows: pd.DataFrame, printed: pd.Series) -> Figure:
    place = {model: index for index, model in enumerate(printed.index)}
    rows = rows[rows["model"].isin(list(place))]
    colour = colours(ATTENTIONS)
    figure, ax = plt.subplots(figsize=(WIDTH, 1.2 + 0.55 * len(place)))
    for offset, attention in zip((BAR / 2, -BAR / 2), ATTENTIONS, strict=True):
        kind = rows[rows["attention"] == attention]
        closed = kind[kind["method"] == "closed_form"]
        ax.barh(closed["model"].map(place) + offset, closed["value"], BAR * 0.9,
                color=colour[attention], label=f"{attention} attention")  # fmt: skip
        speed = kind[kind["method"] == "throughput"]
        ax.plot(speed["value"], speed["model"].map(place) + offset, "o", markerfacecolor="none",
                color="black", markersize=7, label="from printed speed"
                if attention == ATTENTIONS[0] else None)  # fmt: skip
        if attention == "causal":
            _mark_printed(ax, closed.set_index("model")["value"], printed, place, offset)
    ax.set_yticks(range(len(place)), list(place))
    ax.set(xlabel="GFLOP per token")
    ax.margins(x=0.12)
    ax.grid(visible=False, axis="y")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    return figure


def _mark_printed(
    ax: plt.Axes, closed: pd.Series, printed: pd.Series, place: dict[str, int], offset: float
) -> None:
    heights = [place[model] + offset for model in printed.index]
    ax.plot(printed, heights, "|", color="black", markersize=18, markeredgewidth=1.5,
            label="printed")  # fmt: skip
    for (model, value), height in zip(printed.items(), heights, strict=True):
        text = f"{closed[model] / value - 1:+.1%}"
        ax.annotate(text, (max(closed[model], value), height), xytext=(8, 0), fontsize=8,
                    textcoords="offset points", verticalalignment="center")  # fmt: skip
