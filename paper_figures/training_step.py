"""A published training step: its phases, and how far its numbers are from what they follow from."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.results import Results
from harness.reporting.style import WIDTH, colours, markers

ORDER = 81.2
TITLE = "Consistency of a published training step"
# Relative: within it the ledger calls a number of the table reproduced.
TOLERANCE = 0.005
CAPTION = (
    "DeepSeek-V3 on 2,048 H800 with a multi-plane (MPFT) and a single-plane multi-rail fat tree "
    "(MRFT). All times and rates are those printed in arXiv 2505.09343, table 4; none was measured "
    "here. Top: phases of a step, each from where the one before ends, and their sum beside the "
    "printed time per step (ticks). Bottom: numbers of the table as they follow from other numbers "
    "of it, from the dense BF16 peak of an H800, or from the model's operations per token and "
    "tokens per day, relative to the printed ones; hollow: with operations of multi-token "
    f"prediction. Grey: within ± {100 * TOLERANCE:g} %, which the ledger calls reproduced."
)
PHASE, STEP, DIFFERENCE = "step/phase", "step/time_per_step", "step/difference"
LABELS = ("network", "phase", "method", "quantity", "prediction")
PHASES = {
    "forward": "forward (1F)",
    "bubble": "pipeline bubble",
    "backward": "backward for inputs (1B)",
    "backward_weight": "backward for weights (1W)",
    "overlapped": "forward and backward (1F1B)",
    "optimizer": "optimizer",
}
QUANTITIES = {
    "tokens_per_day": "tokens per day",
    "time_per_step": "time per step",
    "tflops_causal": "causal TFLOPS",
    "tflops_full": "non-causal TFLOPS",
    "mfu_causal": "causal MFU",
    "mfu_full": "non-causal MFU",
}
SOURCES = {
    "time_per_step": "time per step",
    "tokens_per_day": "tokens per day",
    "phases": "its phases",
    "printed_tflops": "TFLOPS and peak",
    "closed_form": "the model",
}
BAR, ROW = 0.38, 0.32


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that held a training step against itself."""
    figures = {}
    for experiment, rows in results.labelled(DIFFERENCE, *LABELS):
        figures[f"training_step.{experiment}"] = (experiment, _draw(rows))
    return figures


def _draw(rows: pd.DataFrame) -> Figure:
    differences = rows[rows["metric"] == DIFFERENCE]
    pairs = list(dict.fromkeys(zip(differences["quantity"], differences["method"], strict=True)))
    pairs.sort(key=lambda pair: list(QUANTITIES).index(pair[0]))
    phases = rows[rows["metric"] == PHASE]
    counts = [phases["phase"].nunique() + 1, len(pairs)]
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDTH, 1.5 + ROW * sum(counts)), height_ratios=counts
    )
    networks = list(dict.fromkeys(phases["network"]))
    _phases(top, phases, rows[rows["metric"] == STEP], networks)
    _differences(bottom, differences, pairs, networks)
    figure.legend(*bottom.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    return figure


def _phases(ax: Axes, phases: pd.DataFrame, times: pd.DataFrame, networks: list[str]) -> None:
    names = list(dict.fromkeys(phases["phase"]))
    for network, offset in _offsets(networks).items():
        seconds = phases[phases["network"] == network].set_index("phase")["value"]
        seconds = seconds.reindex(names, fill_value=0.0)
        time = times[times["network"] == network].set_index("method")["value"]
        ends = [*seconds.cumsum(), time["phases"]]
        places = [index + offset for index in range(len(ends))]
        ax.barh(places, [*seconds, time["phases"]], BAR, left=[0, *ends[:-2], 0],
                color=colours(networks)[network])  # fmt: skip
        ax.plot(time["printed"], places[-1], "|", color="black", markersize=8, markeredgewidth=1.6)
        texts = [f"{value:.2f}" for value in seconds]
        texts.append(f"{time['phases']:.2f} of {time['printed']:.3f}")
        for end, place, text in zip(ends, places, texts, strict=True):
            ax.annotate(text, (end, place), xytext=(5, 0), textcoords="offset points", fontsize=8,
                        verticalalignment="center_baseline")  # fmt: skip
    _rows(ax, [*(PHASES.get(name, name) for name in names), "sum of the phases"])
    ax.set(xlabel="seconds of a step")
    ax.margins(x=0.25)


def _differences(
    ax: Axes, differences: pd.DataFrame, pairs: list[tuple[str, str]], networks: list[str]
) -> None:
    place = {pair: index for index, pair in enumerate(pairs)}
    keys = zip(differences["quantity"], differences["method"], strict=True)
    percent = differences.assign(
        place=[place[key] for key in keys], value=100 * differences["value"]
    )
    ax.axvspan(-100 * TOLERANCE, 100 * TOLERANCE, color="0.88", zorder=0)
    ax.axvline(0, color="0.4", linewidth=0.8)
    marker = markers(networks)
    for network, offset in _offsets(networks).items():
        own = percent[percent["network"] == network]
        counted = own["prediction"].isin(["counted"])
        colour = colours(networks)[network]
        for some, face, text in (
            (own[~counted], colour, network.upper()),
            (own[counted], "white", f"{network.upper()}, with multi-token prediction"),
        ):
            ax.plot(some["value"], some["place"] + offset, marker[network], color=colour,
                    markersize=5.5, markerfacecolor=face, label=text)  # fmt: skip
    _rows(ax, [f"{QUANTITIES[quantity]}, from {SOURCES[method]}" for quantity, method in pairs])
    ax.set(xlabel="relative to the printed number (%)")


def _offsets(networks: list[str]) -> dict[str, float]:
    """Return by how much the first network is above the others in a row."""
    middle = (len(networks) - 1) / 2
    return {name: (index - middle) * BAR for index, name in enumerate(networks)}


def _rows(ax: Axes, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
