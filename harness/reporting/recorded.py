"""What training runs recorded of their momentum and gradients, as tables and figures ask for it."""

import pandas as pd

from harness.records.statistics import Estimate, mean_over_seeds
from harness.reporting.results import Sweep, with_labels

STEADY_ERROR = "orthogonalization/steady_error"
# Kinds of layers in the order of the published figure.
LAYERS = {
    "mlp_up": "MLP up",
    "mlp_down": "MLP down",
    "attention_qkv": "attention QKV",
    "attention_out": "attention output",
}


def recorded(sweep: Sweep, metric: str, labels: tuple[str, ...]) -> pd.DataFrame:
    """Return the rows of ``metric`` with their labels as columns."""
    rows = sweep.records[sweep.records["metric"] == metric]
    return with_labels(rows, *labels)


def shown_optimizer(rows: pd.DataFrame) -> str | None:
    """Return whose runs a figure shows: Muon's, which has no part of ROOT, else the first."""
    names = list(dict.fromkeys(rows["optimizer"]))
    return "muon" if "muon" in names else next(iter(names), None)


def precision_estimates(sweep: Sweep) -> dict[tuple[str, str, str], Estimate]:
    """Return steady errors by optimizer that trained, coefficients and kind of layer."""
    rows = recorded(sweep, STEADY_ERROR, ("layer", "coefficients"))
    groups = rows.groupby(["optimizer", "coefficients", "layer"], sort=False)["value"]
    return {key: mean_over_seeds(list(values)) for key, values in groups}
