"""Tables of how fast training ran, what of the device it used and where its time went."""

from collections.abc import Iterator

import pandas as pd

from harness.records.statistics import Estimate
from harness.reporting.results import Sweep
from harness.reporting.table import Table

PHASES = ("data", "forward_backward", "optimizer", "evaluation", "checkpoint")
GIBIBYTE = 2**30
# Metric, column, what a cell is divided by, decimals.
COLUMNS = (
    ("throughput", "{unit}", 1.0, 0),
    ("model_flops", "TFLOP/s", 1e12, 3),
    ("utilization/bfloat16_peak", "% of the bfloat16 peak", 0.01, 1),
    ("memory/peak", "peak memory (GiB)", GIBIBYTE, 2),
    ("energy/nvml", "energy of the GPU (J)", 1.0, 0),
    ("energy/powercap", "energy of all cores (J)", 1.0, 0),
)
RETRIES = ("out_of_memory_retries", "halved micro-batches", 1.0, 1)


def throughput_tables(sweep: Sweep) -> Iterator[Table]:
    """Yield one row per member, with the columns that this machine could measure."""
    present = set(sweep.records["metric"])
    if not {"throughput", *(f"time/{phase}" for phase in PHASES)} <= present:
        return
    units = sweep.records.loc[sweep.records["metric"] == "throughput", "unit"]
    columns = [column for column in COLUMNS if column[0] in present]
    if sweep.records.loc[sweep.records["metric"] == RETRIES[0], "value"].any():
        columns.append(RETRIES)
    numbers, text = [], []
    for name in sweep.members:
        means = {metric: _mean(sweep.estimate(metric, name)) for metric, *_ in columns}
        phases = {phase: _mean(sweep.estimate(f"time/{phase}", name)) for phase in PHASES}
        seconds = {f"seconds_{phase}": value for phase, value in phases.items()}
        numbers.append({sweep.factor: name, **means, **seconds})
        cells = {
            title.format(unit=units.iloc[0]): _text(means[metric], divisor, digits)
            for metric, title, divisor, digits in columns
        }
        text.append({sweep.factor: name, **cells, **_shares(phases)})
    yield Table(
        name=f"throughput.{sweep.name}",
        experiment=sweep.experiment,
        title=f"Throughput of training: {sweep.place}",
        caption=(
            "Means over the reporting seeds; the rate is that of the median interval between two "
            "records of the loss, evaluation and checkpoints left out. Operations of the model "
            "count forward and backward with causal attention, none twice; FP8 is held against the "
            "bfloat16 peak too. Phases in per cent of their sum; data is what training waited for."
        ),
        numbers=pd.DataFrame(numbers),
        text=pd.DataFrame(text),
    )


def _shares(phases: dict[str, float | None]) -> dict[str, str]:
    total = sum(value or 0.0 for value in phases.values())
    return {
        f"% {phase.replace('_', ' + ')}": "-" if value is None else f"{100 * value / total:.1f}"
        for phase, value in phases.items()
    }


def _mean(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.mean


def _text(value: float | None, divisor: float, digits: int) -> str:
    return "-" if value is None else f"{value / divisor:,.{digits}f}"
