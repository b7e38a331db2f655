"""What kinds of attention keep per token, against the loss that they reach."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from harness.reporting.results import Results, Sweep
from harness.reporting.style import HEIGHT, WIDTH, colours

ORDER = 17
TITLE = "Quality against cache"
CAPTION = (
    "Test loss against the cache that decoding needs per token in bfloat16, models of equal size: "
    "mean over seeds with the 95 % interval; every small circle is one seed."
)
CACHE = "memory/cache_per_token"
LOSS = "test/loss"


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per sweep over models with caches of different sizes."""
    figures = {}
    for sweep in results.sweeps():
        rows = sweep.records[sweep.records["metric"] == CACHE]
        if sweep.factor == "model" and rows["value"].nunique() > 1:
            figures[f"attention_quality.{sweep.name}"] = (sweep.experiment, _draw(sweep))
    return figures


def _draw(sweep: Sweep) -> Figure:
    figure, ax = plt.subplots(figsize=(WIDTH, HEIGHT))
    colour = colours(sweep.palette)
    for name in sweep.members:
        cache, loss = sweep.estimate(CACHE, name), sweep.estimate(LOSS, name)
        if cache is None or loss is None:
            continue
        seeds = list(sweep.final(LOSS, name).values())
        ax.plot([cache.mean] * len(seeds), seeds, "o", color=colour[name], markersize=4,
                markerfacecolor="white")  # fmt: skip
        ax.errorbar(cache.mean, loss.mean, yerr=loss.half_width if loss.count > 1 else None,
                    fmt="D", color=colour[name], markersize=5, capsize=3)  # fmt: skip
        ax.annotate(name, (cache.mean, loss.mean), xytext=(7, 4), textcoords="offset points",
                    fontsize=9)  # fmt: skip
    ax.set(xlabel="cache (B/token)", ylabel="test loss (nats)", title=sweep.place)
    ax.set_xlim(left=0)
    ax.margins(x=0.15)
    return figure
