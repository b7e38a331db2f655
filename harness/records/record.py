"""How a number becomes a record."""

from typing import Any

Record = dict[str, Any]
# Columns of their own in the table of records; everything else is a label.
FACTORS = ("model", "seed")


def record(metric: str, value: float, unit: str, **labels: Any) -> Record:
    """Return one number as a record.

    Args:
        metric: Its name, ``subject/quantity``.
        value: The number.
        unit: Of the number; ``1`` for a ratio.
        **labels: What tells it apart from others of the metric; ``model`` and ``seed`` are factors.
    """
    factors = {name: labels.pop(name) for name in FACTORS if name in labels}
    return {"metric": metric, "value": float(value), "unit": unit, "labels": labels} | factors
