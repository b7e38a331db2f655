"""The final loss against the percentile at which ROOT clips, without and with gradient outliers."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.records.statistics import Estimate
from harness.reporting.conditions import (
    describe,
    gradient_outliers,
    specification,
    without_outliers,
)
from harness.reporting.results import Results, Sweep
from harness.reporting.style import HEIGHT, WIDTH

ORDER = 34
TITLE = "Final test loss by the percentile at which ROOT clips"
METRIC = "test/loss"
COLOURS = {"without outliers": "tab:blue", "with outliers": "tab:red"}
# Intervals at the same percentile stand side by side.
SHIFT = {"without outliers": -0.12, "with outliers": 0.12}


def caption(results: Results) -> str:
    """Return the caption, with what was injected according to the runs themselves."""
    injected = [gradient_outliers(sweep) for sweep in results.sweeps() if _percentiles(sweep)]
    sentences = dict.fromkeys(describe(outliers) for outliers in injected if outliers)
    fixed = (
        "Entries of a matrix beyond this percentile of its absolute values are clipped. Mean over "
        "fresh seeds with the 95 % interval, at the learning rate tuned for each point. Broken "
        "lines are optimizers that clip nothing."
    )
    return " ".join([fixed, *sentences])


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return one figure per model and dataset on which percentiles were compared."""
    groups: dict[tuple[str, str], list[Sweep]] = defaultdict(list)
    for sweep in results.sweeps():
        if _percentiles(sweep):
            groups[sweep.fixed, sweep.dataset].append(sweep)
    return {
        f"outlier_percentile.{model}.{dataset}": (sweeps[-1].experiment, _draw(sweeps, results))
        for (model, dataset), sweeps in groups.items()
    }


def _percentiles(sweep: Sweep) -> dict[float, Estimate]:
    """Return the final loss by percentile, of optimizers that differ from the baseline in it alone.

    Empty if there are fewer than two.
    """
    if sweep.baseline not in sweep.members:
        return {}
    baseline, _ = _split(sweep, sweep.baseline)
    found = {}
    for name in sweep.members:
        (rest, percentile), estimate = _split(sweep, name), sweep.estimate(METRIC, name)
        if rest == baseline and percentile is not None and estimate is not None:
            found[percentile] = estimate
    return dict(sorted(found.items())) if len(found) > 1 else {}


def _split(sweep: Sweep, optimizer: str) -> tuple[dict[str, Any], float | None]:
    """Return the specification of an optimizer without its percentile, and the percentile."""
    spec = specification(sweep, optimizer)
    return spec, spec.get("optimizer", {}).get("arguments", {}).pop("outlier_percentile", None)


def _draw(sweeps: list[Sweep], results: Results) -> Figure:
    figure, ax = plt.subplots(figsize=(WIDTH, HEIGHT))
    for sweep in sweeps:
        condition = _condition(sweep)
        estimates = _percentiles(sweep)
        ax.errorbar(
            [100 * percentile + SHIFT[condition] for percentile in estimates],
            [estimate.mean for estimate in estimates.values()],
            yerr=[estimate.half_width for estimate in estimates.values()],
            fmt="-D", color=COLOURS[condition], markersize=5, capsize=3,
            label=f"{sweep.baseline}, {condition}",
        )  # fmt: skip
    for (name, condition), estimate in dict(_unfiltered(sweeps, results)).items():
        _reference(ax, estimate, COLOURS[condition], f"{name}, {condition}")
    ax.set_xticks(sorted({100 * percentile for s in sweeps for percentile in _percentiles(s)}))
    ax.set(xlabel="percentile of absolute values", ylabel="test loss (nats)",
           title=sweeps[0].place)  # fmt: skip
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def _condition(sweep: Sweep) -> str:
    return "without outliers" if gradient_outliers(sweep) is None else "with outliers"


def _unfiltered(
    sweeps: list[Sweep], results: Results
) -> Iterator[tuple[tuple[str, str], Estimate]]:
    """Yield name, condition and final loss of the optimizers without a filter.

    Those of a sweep with outliers also without them, wherever the records have such runs.
    """
    for sweep in sweeps:
        for name in sweep.members:
            if _split(sweep, name)[1] is None:
                for place in (without_outliers(results, sweep, name), sweep):
                    estimate = place.estimate(METRIC, name) if place else None
                    if place and estimate:
                        yield (name, _condition(place)), estimate


def _reference(ax: Axes, estimate: Estimate, colour: str, label: str) -> None:
    ax.axhline(estimate.mean, color=colour, linestyle=(0, (5, 1.5)), linewidth=1.2, label=label)
    if estimate.count > 1:
        ax.axhspan(estimate.low, estimate.high, color=colour, alpha=0.1, linewidth=0)
