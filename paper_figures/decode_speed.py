"""Time of one decoding step against context, by kind of attention."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from harness.reporting.results import Results, with_labels
from harness.reporting.style import HEIGHT, WIDTH, colours, dashes

ORDER = 51
TITLE = "Time of one decoding step"
CAPTION = (
    "Time over multi-head attention's in the same round, models of equal size in turn in one "
    "process: median and middle half of the rounds. Latent attention decodes with full keys and "
    "values (naive) or from its latent (absorbed). Throughput of decoding, not quality."
)
METRIC = "decode/time_per_token"
BASELINE = "mha"


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that timed decoding."""
    return {
        f"decode_speed.{experiment}": (experiment, _draw(records))
        for experiment, records in results.with_metric(METRIC)
    }


def time_ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Return time over the baseline's in the same round (context and round x attention)."""
    keys = ("attention", "context", "round")
    rows = with_labels(rows, *keys)
    times = rows.pivot_table(index=["context", "round"], columns="attention", values="value",
                             sort=False).astype(float)  # fmt: skip
    return times.div(times[BASELINE], axis=0)


def _draw(rows: pd.DataFrame) -> Figure:
    ratios = time_ratios(rows)
    figure, ax = plt.subplots(figsize=(WIDTH, HEIGHT))
    names = list(ratios.columns)
    colour, dash = colours(names), dashes(names)
    for name in names:
        spread = ratios[name].groupby("context").quantile([0.25, 0.5, 0.75]).unstack()
        contexts = spread.index.to_numpy(dtype=int)
        ax.plot(contexts, spread[0.5], label=name, color=colour[name], linestyle=dash[name],
                marker="o", markersize=4, linewidth=1.4)  # fmt: skip
        ax.fill_between(contexts, spread[0.25], spread[0.75], color=colour[name], alpha=0.15, lw=0)
    ax.set(xscale="log", xlabel="context (tokens)", ylabel=f"time of a step / {BASELINE}'s")
    ax.set_xticks(contexts, [str(context) for context in contexts])
    ax.minorticks_off()
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure
