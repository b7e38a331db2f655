"""What the runs of a sweep were given, read from their specifications."""

import json
from collections.abc import Mapping
from typing import Any

from harness.reporting.results import Results, Sweep

DISTRIBUTIONS = {"normal": "normal", "laplace": "Laplace", "cauchy": "Cauchy"}


def specification(sweep: Sweep, member: str) -> dict[str, Any]:
    """Return what all runs of a member have in common: no learning rate, no seed."""
    spec = json.loads(sweep.runs_of(member)["spec"].iloc[0])
    for key in ("learning_rate", "seed"):
        spec.pop(key, None)
    # Recording only reads: with and without it, runs end with the same weights.
    spec.get("training", {}).pop("recording_interval", None)
    return spec


def gradient_outliers(sweep: Sweep) -> dict[str, Any] | None:
    """Return the outliers that were added to the gradients of a sweep; None if none were."""
    training = specification(sweep, sweep.members[0]).get("training", {})
    return training.get("gradient_outliers")


def without_outliers(results: Results, sweep: Sweep, optimizer: str) -> Sweep | None:
    """Return the sweep with the runs of ``optimizer`` without outliers, all else being equal.

    None if the records have no such runs.
    """
    wanted = specification(sweep, optimizer)
    wanted["training"]["gradient_outliers"] = None
    for other in results.sweeps():
        if optimizer in other.members and specification(other, optimizer) == wanted:
            return other
    return None


def low_precision(sweep: Sweep) -> bool:
    """Return whether some models of a sweep compute or send in fewer bits than its baseline."""
    if sweep.factor != "model":
        return False
    parts = {
        tuple(json.dumps(specification(sweep, name).get("model", {}).get(key))
              for key in ("linear", "combine"))
        for name in sweep.members
    }  # fmt: skip
    return len(parts) > 1


def describe(outliers: Mapping[str, Any]) -> str:
    """Return in a sentence what was added to the gradients."""
    return (
        f"In every step {100 * outliers['fraction']:g} % of the entries of each gradient, chosen "
        f"at random, got an outlier from a {DISTRIBUTIONS[outliers['distribution']]} distribution "
        f"whose scale is {outliers['scale']:g} times the root mean square of that gradient."
    )
