"""Looking numbers up in a list of records."""

import json
from collections.abc import Iterable


def only(records: Iterable[dict], metric: str, **labels) -> float:
    """Return the value of the one record of a metric with these labels, model or seed."""
    [value] = [
        record["value"]
        for record in records
        if record["metric"] == metric and _told_by(record).items() >= labels.items()
    ]
    return value


def assert_told_apart(records: Iterable[dict]) -> None:
    """Assert that no two records of a metric have the same labels, model and seed."""
    keys = [(r["metric"], json.dumps(_told_by(r), sort_keys=True)) for r in records]
    assert len(set(keys)) == len(keys)


def _told_by(record: dict) -> dict:
    factors = {name: record[name] for name in ("model", "seed") if name in record}
    return record["labels"] | factors
