"""Tables of closed forms: the records of some metrics, laid out by their labels."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from harness.reporting.results import Results, label
from harness.reporting.table import Table

FACTORS = ("model", "seed")


@dataclass(frozen=True)
class Layout:
    """What a table shows of the records of an experiment.

    Attributes:
        name: File name without ending.
        title: One line above it.
        caption: What the columns mean.
        metrics: Metrics, and the words for them; a table has the records of all of them.
        rows: Labels whose values begin the rows, ``metric`` and ``model`` among them.
        columns: Labels whose values, joined, head the columns; none: the words of the metrics.
        where: Values that labels may have; None stands for records without the label.
        digits: Significant digits.
    """

    name: str
    title: str
    caption: str
    metrics: dict[str, str]
    rows: tuple[str, ...]
    columns: tuple[str, ...] = ()
    where: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    digits: int = 4


LAYOUTS = (
    Layout(
        name="training_step",
        title="A published training step against itself",
        caption=(
            "Printed in arXiv 2505.09343, table 4, and derived: from the tokens of a day, the time "
            "of a step, the sum of its phases, printed TFLOPS and the peak, or operations per "
            "token of the model without multi-token prediction (closed form)."
        ),
        metrics={
            "step/tokens_per_day": "billion tokens per day",
            "step/time_per_step": "s per step",
            "step/tflops_causal": "TFLOPS, causal",
            "step/tflops_full": "TFLOPS, full",
            "step/mfu_causal": "MFU, causal (%)",
            "step/mfu_full": "MFU, full (%)",
            "step/bubble_share": "share of the bubble",
        },
        rows=("metric", "network"),
        columns=("method",),
        where={"prediction": (None, "left out")},
        digits=5,
    ),
    Layout(
        name="decode_bandwidth",
        title="Memory bandwidth that stated decoding speeds need",
        caption="GB/s, if every token reads the activated weights and nothing else.",
        metrics={"roofline/implied_bandwidth": "GB/s"},
        rows=("statement", "model"),
        columns=("storage",),
    ),
    Layout(
        name="decode_roofline",
        title="Decoding by the sequences that are decoded together",
        caption=(
            "Tokens per second of a request on each device as if it held the model, FP8 weights "
            "and a BF16 cache of 4,096 tokens, nothing drafted."
        ),
        metrics={"roofline/tokens_per_second": "token/s"},
        rows=("device", "model"),
        columns=("batch",),
        where={"context": (4096,), "drafting": ("none",)},
        digits=3,
    ),
    Layout(
        name="communication_budget",
        title="Speed of matrix products beside multiprocessors that communicate",
        caption=(
            "Over that on all multiprocessors, by how many only communicate; with the fastest tile "
            "for each product, and for any work that is cut ever finer."
        ),
        metrics={"budget/speed": "speed"},
        rows=("product",),
        columns=("communicating",),
        where={"communicating": (4, 8, 12, 16, 20, 24, 32, 64), "tile": ("any", "best")},
        digits=3,
    ),
    Layout(
        name="failure_probability",
        title="Probability that any device fails",
        caption="By the probability of one device (an assumption) and their number; closed form.",
        metrics={"failures/probability": "probability"},
        rows=("per_device",),
        columns=("devices",),
        where={"method": ("closed_form",)},
        digits=3,
    ),
    Layout(
        name="goodput",
        title="Share of time that is work that lasts",
        caption=(
            "With the best interval between checkpoints, by mean hours until a device fails (an "
            "assumption) and the number of devices; closed form."
        ),
        metrics={"failures/goodput": "goodput"},
        rows=("recovery", "lifetime"),
        columns=("devices",),
        where={"method": ("closed_form",), "interval": ("exact",)},
        digits=3,
    ),
    Layout(
        name="spares",
        title="Spare devices",
        caption=(
            "Fewest that keep a job of so many devices complete with the confidence of the "
            "experiment, by the probability that a device fails before its repair (an assumption)."
        ),
        metrics={"failures/spares": "spares"},
        rows=("per_device",),
        columns=("devices",),
    ),
    Layout(
        name="link_contention",
        title="Decoding beside transfers of the cache on one PCIe link",
        caption="By GB/s of the cache that are asked for, without and with priority.",
        metrics={"link/card_rate": "network card (GB/s)", "link/tokens_per_second": "token/s"},
        rows=("metric", "priority"),
        columns=("stream",),
        digits=3,
    ),
    Layout(
        name="message_overhead",
        title="Time of a dispatch by who posts its messages",
        caption="Microseconds, by those in which one message is posted (an assumption).",
        metrics={"messages/dispatch_time": "us"},
        rows=("posted_by", "posters"),
        columns=("overhead",),
        digits=3,
    ),
    Layout(
        name="switch_latency",
        title="Time per token by the path of a transfer",
        caption="One way, time per token with it in every transfer, and what it adds.",
        metrics={
            "latency/one_way": "us",
            "latency/time_per_token": "ms per token",
            "latency/added": "added share",
        },
        rows=("network", "path"),
    ),
    Layout(
        name="fences",
        title="Round trips that order messages",
        caption="By fences in a layer and micro-batch.",
        metrics={
            "fence/time": "us",
            "fence/over_communication": "over dispatch and combine",
            "fence/time_per_token": "ms per token",
        },
        rows=("network", "fences"),
    ),
    Layout(
        name="multicast",
        title="What a device sends of its tokens",
        caption=(
            "MB of a dispatch and a combine with a copy for every expert, for every node (a mean), "
            "for every node within the limit of the router (at most), or multiplied and added up "
            "by the network."
        ),
        metrics={"multicast/bytes": "MB"},
        rows=("model", "copies"),
        columns=("operation",),
        digits=3,
    ),
    Layout(
        name="scaling",
        title="Operations of scaling outside tensor cores",
        caption="Over those of the matrix product, by the products that share scales.",
        metrics={"scaling/operations": "share"},
        rows=("inner",),
        columns=("group",),
        digits=3,
    ),
)


def closed_form_tables(results: Results, experiment: str) -> Iterator[Table]:
    """Yield the table of every layout that the records of an experiment have the numbers for."""
    for layout in LAYOUTS:
        rows = results.of(experiment)
        rows = rows[rows["metric"].isin(list(layout.metrics))]
        if not rows.empty:
            yield _table(layout, experiment, rows)


def _table(layout: Layout, experiment: str, rows: pd.DataFrame) -> Table:
    rows = _shown(layout, rows)
    index = list(layout.rows)
    assert not rows.duplicated([*index, "column"]).any(), f"{layout.name}: a cell of two records"
    numbers = rows.pivot_table(index=index, columns="column", values="value", sort=False)
    numbers = numbers.reset_index().rename_axis(columns=None)
    text = numbers.assign(**{
        column: [_cell(value, layout.digits) for value in numbers[column]]
        for column in numbers.columns.difference(index)
    })  # fmt: skip
    return Table(
        name=f"{layout.name}.{experiment}",
        experiment=experiment,
        title=layout.title,
        caption=layout.caption,
        numbers=numbers,
        text=text,
    )


def _shown(layout: Layout, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the records of the table, with their labels and the heads of their columns."""
    names = {*layout.rows, *layout.columns, *layout.where} - {"metric", *FACTORS}
    rows = rows.assign(metric=rows["metric"].map(layout.metrics), value=rows["value"].astype(float))
    rows = rows.assign(**{name: label(rows, name).astype(object) for name in names})
    for name, allowed in layout.where.items():
        missing = rows[name].isna() & (None in allowed)
        rows = rows[missing | rows[name].isin([value for value in allowed if value is not None])]
    head = list(layout.columns or ("metric",))
    rows = rows.dropna(subset=[*layout.rows, *head])
    return rows.assign(column=rows[head].astype(str).agg(", ".join, axis=1))


def _cell(value: float, digits: int) -> str:
    return "-" if pd.isna(value) else f"{value:.{digits}g}"
