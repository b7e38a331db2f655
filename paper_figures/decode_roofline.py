"""How fast models decode by memory bandwidth, and by the sequences that are decoded together."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results
from harness.reporting.style import WIDTH, colours, dashes

ORDER = 85
TITLE = "Roofline of decoding"
CAPTION = (
    "Left: tokens per second of one request if memory alone limits; FP8 weights, no cache. "
    "Crosses: speeds that arXiv 2505.09343, section 2.2.2, states, at the bandwidth they need "
    "with such weights; hardware and bandwidth are not published, and 4-bit weights need half. "
    "Middle: tokens per second of a request on a device with the bandwidth that FlashMLA reaches "
    "on an H800 and its BF16 peak, as if it held the model, by sequences decoded together. Right: "
    "what drafting one token is worth there; dotted: if drafts cost nothing. With experts chosen "
    "independently a second token reads experts of its own, until all of them are read anyway; "
    "with very many sequences computation limits, of which it takes twice as much."
)
SPEED, NEEDED, WORTH = (
    "roofline/tokens_per_second",
    "roofline/implied_bandwidth",
    "roofline/drafting_speedup",
)
LABELS = ("storage", "batch", "context", "bandwidth", "device", "drafting", "acceptance",
          "statement")  # fmt: skip
STORAGE = "fp8"


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment with rooflines."""
    figures = {}
    for experiment, rows in results.labelled(WORTH, *LABELS):
        figures[f"decode_roofline.{experiment}"] = (experiment, _draw(rows))
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(WIDTH, 3.3))
    models = list(dict.fromkeys(rows.loc[rows["bandwidth"].notna(), "model"]))
    speeds = rows[rows["metric"] == SPEED]
    _by_bandwidth(left, speeds[speeds["storage"] == STORAGE], models)
    _statements(left, rows[rows["storage"] == STORAGE])
    worth = rows[rows["metric"] == WORTH]
    device, context = worth["device"].iloc[0], worth["context"].iloc[0]
    here = speeds[(speeds["device"] == device) & (speeds["context"] == context)]
    _by_batch(middle, here[here["drafting"] == "none"], models)
    worth = worth[(worth["device"] == device) & (worth["context"] == context)]
    _worth(right, worth)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    return figure


def _by_bandwidth(ax: Axes, speeds: pd.DataFrame, models: list[str]) -> None:
    swept = speeds[speeds["bandwidth"].notna()]
    _lines(ax, swept, "bandwidth", models)
    ax.set(xscale="log", yscale="log", xlabel="memory bandwidth (GB/s)",
           ylabel="tokens per second")  # fmt: skip


def _statements(ax: Axes, rows: pd.DataFrame) -> None:
    """Mark each statement where the line of its model reaches the stated speed."""
    needed = rows[rows["metric"] == NEEDED]
    swept = rows[(rows["metric"] == SPEED) & rows["bandwidth"].notna()]
    per_gigabyte = (
        (swept["value"] / swept["bandwidth"].astype(float)).groupby(swept["model"]).first()
    )
    ax.plot(needed["value"], needed["value"] * needed["model"].map(per_gigabyte), "x",
            color="black", markersize=7, markeredgewidth=1.4, label="stated")  # fmt: skip


def _by_batch(ax: Axes, speeds: pd.DataFrame, models: list[str]) -> None:
    _lines(ax, speeds, "batch", models)
    ax.set(xscale="log", yscale="log", xlabel="sequences", ylabel="tokens per second and request")


def _worth(ax: Axes, worth: pd.DataFrame) -> None:
    shares = sorted(set(worth["acceptance"]))
    colour = colours(["", "", "", *map(str, shares)])
    for share in shares:
        some = worth[worth["acceptance"] == share].sort_values("batch")
        ax.plot(some["batch"].astype(float), some["value"], "o-", markersize=3, linewidth=1.4,
                color=colour[str(share)], label=f"{share:.0%}")  # fmt: skip
        ax.axhline(1 + share, color=colour[str(share)], linestyle=":", linewidth=1)
    ax.set(xscale="log", xlabel="sequences", ylim=(1, 2),
           ylabel=f"speed-up of {worth['model'].iloc[0]} by drafting")  # fmt: skip
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.79), title="accepted",
              title_fontsize=8, handlelength=1)  # fmt: skip


def _lines(ax: Axes, rows: pd.DataFrame, by: str, models: list[str]) -> None:
    colour, dash = colours(models), dashes(models)
    for model in models:
        some = rows[rows["model"] == model].sort_values(by)
        ax.plot(some[by].astype(float), some["value"], linewidth=1.5, color=colour[model],
                linestyle=dash[model], label=model)  # fmt: skip
