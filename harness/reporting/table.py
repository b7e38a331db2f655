"""A table in two forms, and how its cells are written."""

from dataclasses import dataclass

import pandas as pd

from harness.records.statistics import Estimate


@dataclass(frozen=True)
class Table:
    """A table in two forms: numbers to compute with, and text to read.

    Attributes:
        name: File name without ending.
        experiment: The experiment it belongs to.
        title: One line above it.
        caption: What the columns mean.
        numbers: For CSV.
        text: For Markdown, LaTeX and the report.
    """

    name: str
    experiment: str
    title: str
    caption: str
    numbers: pd.DataFrame
    text: pd.DataFrame


def interval(estimate: Estimate | None, digits: int, sign: str = "") -> str:
    """Return mean and half of the interval as text; ``-`` for nothing."""
    if estimate is None:
        return "-"
    mean = f"{estimate.mean:{sign}.{digits}f}"
    return mean if estimate.count == 1 else f"{mean} ± {estimate.half_width:.{digits}f}"
