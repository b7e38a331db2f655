"""How much low-precision formats lose of values from several distributions."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from harness.records.statistics import mean_over_seeds
from harness.reporting.results import Results, with_labels
from harness.reporting.style import WIDTH, colours, markers

ORDER = 70
TITLE = "Signal-to-noise ratio of number formats"
CAPTION = (
    "Signal over quantisation noise of independent values, mean over seeds with the 95 % interval "
    "where it is wider than the mark; further right is better, and 6 dB are one bit of mantissa. "
    "Formats share a scale (LogFMT: a range) per tile of neighbouring values or per tensor; "
    "bfloat16 has none."
)
METRIC = "format/signal_to_noise"
LABELS = ("format", "scaling", "tile", "distribution")


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per experiment that compared formats."""
    return {
        f"number_formats.{experiment}": (experiment, _draw(records))
        for experiment, records in results.with_metric(METRIC)
    }


def _draw(records: pd.DataFrame) -> Figure:
    frame = with_labels(records, *LABELS)
    frame["row"] = [_row(*place) for place in zip(*(frame[n] for n in LABELS[:3]), strict=True)]
    order = list(frame.groupby("row")["value"].mean().sort_values().index)
    distributions = list(dict.fromkeys(frame["distribution"]))
    colour, marker = colours(distributions), markers(distributions)
    figure, ax = plt.subplots(figsize=(WIDTH, 1.1 + 0.32 * len(order)))
    for index, name in enumerate(distributions):
        some = frame[frame["distribution"] == name].groupby("row")["value"]
        estimates = [(order.index(row), mean_over_seeds(values)) for row, values in some]
        # Beside each other, since many coincide.
        shift = 0.14 * (index - (len(distributions) - 1) / 2)
        ax.errorbar(
            [estimate.mean for _, estimate in estimates],
            [place - shift for place, _ in estimates],
            xerr=[estimate.half_width if estimate.count > 1 else 0 for _, estimate in estimates],
            fmt=marker[name], color=colour[name], markersize=5,
            label=name.replace("_", " "),
        )  # fmt: skip
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel="signal-to-noise ratio (dB)")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5,
                  frameon=False)  # fmt: skip
    return figure


def _row(format: str, scaling: str, tile: int) -> str:
    kinds = {"none": "", "tensor": ", per tensor", "tile": f", 1 x {tile}",
             "tile_power_of_two": f", 1 x {tile}, power of two"}  # fmt: skip
    return format + kinds[scaling]
