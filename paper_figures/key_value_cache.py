"""Bytes that a token takes in the cache of each model, by what is cached of it."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from harness.reporting.results import Results, with_labels
from harness.reporting.style import WIDTH, colours

ORDER = 80
TITLE = "Key-value cache per token"
CAPTION = (
    "Bytes of one token in all layers, by closed form. 'latent': the compressed vector of "
    "multi-head latent attention; 'heads': keys and values of the model's key-value heads, which "
    "latent attention expands; 'multi-head': those of all query heads, as if the model had "
    "multi-head attention. Numbers are BF16 unless named: FP8 is FlashMLA's layout with scales, "
    "6 bit DeepSeek-V2's without. Black ticks: printed in arXiv 2505.09343, table 1."
)
METRIC = "cache/bytes_per_token"
LABELS = ("content", "format", "method")
CONTENTS = ("latent", "heads", "multi_head")
# Of content and format: text in the legend, marker, whether it is filled.
KINDS = {
    ("latent", "bfloat16"): ("latent", "o", True),
    ("latent", "fp8"): ("latent, FP8", "o", False),
    ("latent", "6_bit"): ("latent, 6 bit", "v", False),
    ("heads", "bfloat16"): ("heads", "D", True),
    ("multi_head", "bfloat16"): ("multi-head", "s", True),
}


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that counted caches."""
    figures = {}
    for experiment in results.plan["experiments"]:
        rows = results.of(experiment)
        rows = rows[rows["metric"] == METRIC]
        if not rows.empty:
            rows = with_labels(rows, *LABELS)
            figures[f"key_value_cache.{experiment}"] = (experiment, _draw(rows))
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    closed = rows[rows["method"] == "closed_form"]
    order = closed.groupby("model")["value"].min().sort_values(ascending=False)
    place = {model: index for index, model in enumerate(order.index)}
    colour = colours(CONTENTS)
    figure, ax = plt.subplots(figsize=(WIDTH, 1.2 + 0.34 * len(order)))
    ranges = closed.groupby("model")["value"]
    ax.hlines(range(len(order)), ranges.min()[order.index], ranges.max()[order.index], color="0.8")
    for (content, form), (text, marker, filled) in KINDS.items():
        kind = closed[(closed["content"] == content) & (closed["format"] == form)]
        face = colour[content] if filled else "white"
        ax.plot(kind["value"], kind["model"].map(place), marker, label=text, markersize=6,
                markerfacecolor=face, color=colour[content])  # fmt: skip
    printed = rows[rows["method"] == "printed"]
    ax.plot(printed["value"], printed["model"].map(place), "|", label="printed", color="black",
            markersize=16, markeredgewidth=1.5)  # fmt: skip
    ax.set_yticks(range(len(order)), list(order.index))
    ax.set(xscale="log", xlabel="bytes per token")
    ax.margins(y=0.1)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=6,
                  frameon=False, columnspacing=1.2, handletextpad=0.4)  # fmt: skip
    return figure
