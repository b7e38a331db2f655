"""What incast costs a victim and the switch, by queues of the switch and congestion control."""

from collections.abc import Iterator

import pandas as pd

from harness.reporting.results import Results, with_labels
from harness.reporting.table import Table

SHARE = "incast/victim_share"
# Metric, victim, column, factor.
COLUMNS = (
    (SHARE, "other_ports", "victim: other ports", 1.0),
    (SHARE, "same_input", "a sender's link", 1.0),
    (SHARE, "same_ports", "its link and output", 1.0),
    ("incast/burst_time_over_least", None, "burst / least", 1.0),
    ("incast/peak_backlog", None, "MB in the switch", 1e-6),
    ("incast/paused_share", None, "senders paused", 1.0),
)


def incast_tables(results: Results, experiment: str) -> Iterator[Table]:
    """Yield the shares of victims, and what the burst does, at the largest number of senders."""
    rows = results.of(experiment)
    if not (rows["metric"] == SHARE).any():
        return
    names = ("queues", "control", "victim", "start", "senders", "method")
    rows = with_labels(rows, *names)
    rows = rows[rows["queues"].notna() & rows["senders"].notna()]
    senders, start = rows["senders"].max(), rows["start"].max()
    shown = rows[(rows["senders"] == senders) & (rows["start"].isna() | (rows["start"] == start))]
    columns = {
        column: _means(shown, metric, victim) * factor for metric, victim, column, factor in COLUMNS
    }
    numbers = pd.DataFrame(columns).reset_index()
    text = numbers.assign(**{column: numbers[column].map("{:.3g}".format) for column in columns})
    yield Table(
        name=f"incast.{experiment}",
        experiment=experiment,
        title=f"Incast of {senders:g} senders",
        caption=(
            f"Of a message that starts after {start:g} of the least time of the burst: its "
            "throughput over its max-min fair share. Of the burst: its time over the least, the "
            "most that waits for the receiver, and the share of the time in which a sender waits "
            "for credits of the switch. Means over seeds."
        ),
        numbers=numbers,
        text=text,
    )


def _means(rows: pd.DataFrame, metric: str, victim: str | None) -> pd.Series:
    """Return the mean over seeds by queues and control."""
    some = rows[rows["metric"] == metric]
    if victim is not None:
        some = some[some["victim"] == victim]
    return some.astype({"value": float}).groupby(["queues", "control"], sort=False)["value"].mean()
