"""Tables of polynomial coefficients and of how well they orthogonalise."""

import math
from collections.abc import Iterator

import pandas as pd

from harness.reporting.recorded import LAYERS, precision_estimates
from harness.reporting.results import Results, Sweep, with_labels
from harness.reporting.table import Table, interval

ERROR = "orthogonalization/error"
TRIPLE = ["a", "b", "c"]
# Of one calibration of one shape, whoever uses it.
CALIBRATION = ["rows", "columns", "source", "data", "objective"]


def precision_tables(sweep: Sweep) -> Iterator[Table]:
    """Yield the steady errors of a sweep's coefficients, if its runs recorded what they need."""
    estimates = precision_estimates(sweep)
    if not estimates:
        return
    rows = dict.fromkeys((optimizer, name) for optimizer, name, _ in estimates)
    numbers, text = [], []
    for optimizer, name in rows:
        found = {layer: estimates.get((optimizer, name, layer)) for layer in LAYERS}
        row = {"trained with": optimizer, "coefficients": name}
        numbers.append(row | {key: one.mean if one else None for key, one in found.items()})
        text.append(row | {LAYERS[key]: interval(one, 4) for key, one in found.items()})
    yield Table(
        name=f"precision.{sweep.name}",
        experiment=sweep.experiment,
        title=f"Orthogonalisation error over training: {sweep.place}",
        caption=(
            "Relative Frobenius error after five steps in float64 on the matrices that training "
            "orthogonalised, mean over layers and over the recorded steps after the first 12 % of "
            "training, ± half of the 95 % interval over seeds. Query, key and value are matrices "
            "of their own here and one fused matrix in ROOT's released model."
        ),
        numbers=pd.DataFrame(numbers),
        text=pd.DataFrame(text),
    )


def shape_tables(results: Results, experiment: str) -> Iterator[Table]:
    """Yield one table per matrix shape of a calibration experiment."""
    records = results.of(experiment)
    records = records[records["metric"].str.startswith("orthogonalization/")]
    if records.empty:
        return
    records = with_labels(records, "rows", "columns", "coefficients")
    for (rows, columns), some in records.groupby(["rows", "columns"], sort=False):
        draws = some.loc[some["metric"] == ERROR, "seed"].nunique()
        yield Table(
            name=f"{experiment}.{rows}x{columns}",
            experiment=experiment,
            title=f"Coefficients for matrices of {rows} x {columns}",
            caption=(
                f"Relative Frobenius error on Gaussian matrices, mean over {draws} draws that no "
                "fit saw; coefficients where all steps share them. 'Stable up to': below it no "
                "singular value ever leaves a bounded range above zero, so it should exceed 1. "
                "'fitted': the best triple that is stable; 'unconstrained': the best one of all; "
                "'published': ROOT's released code."
            ),
            **_shape_cells(some),
        )


def calibration_tables(results: Results) -> Iterator[Table]:
    """Yield the table of the coefficients that calibrated optimizers used, if there are any."""
    records = results.of("calibration")
    if records.empty:
        return
    frame = with_labels(records, *CALIBRATION).fillna({"data": "-", "objective": "-"})
    frame["metric"] = frame["metric"].str.removeprefix("calibration/")
    users = frame.groupby(CALIBRATION)["optimizer"].agg(lambda names: ", ".join(sorted(set(names))))
    wide = frame.pivot_table(index=CALIBRATION, columns="metric", values="value")
    wide.insert(0, "optimizers", users)
    wide = wide.reset_index()
    text = pd.DataFrame({
        "matrix": [f"{r} x {c}" for r, c in zip(wide["rows"], wide["columns"], strict=True)],
        "optimizer": wide["optimizers"],
        "coefficients": [_origin(row) for _, row in wide.iterrows()],
        "a, b, c": [_triple(row) for _, row in wide.iterrows()],
        "stable up to": _column(wide, "stable_up_to", 2),
        "error": _column(wide, "error", 4),
        "with Muon's": _column(wide, "error_muon", 4),
        "error, recorded": _column(wide, "error_recorded", 4),
        "with Muon's, recorded": _column(wide, "error_recorded_muon", 4),
    })  # fmt: skip
    yield Table(
        name="calibration",
        experiment="calibration",
        title="AdaNewton coefficients that ROOT used",
        caption=(
            "Relative Frobenius error of the orthogonalised matrix after all steps, on a Gaussian "
            "matrix of this shape that the fit did not see, and on recorded momentum matrices "
            "that it left out. 'published': ROOT's released code; otherwise the matrices that the "
            "coefficients were fitted to and the objective."
        ),
        numbers=wide,
        text=text,
    )


def _shape_cells(records: pd.DataFrame) -> dict[str, pd.DataFrame]:
    wide = records.assign(metric=records["metric"].str.removeprefix("orthogonalization/"))
    wide = wide.pivot_table(index="coefficients", columns="metric", values="value", sort=False)
    wide = wide.reindex(columns=[*TRIPLE, "stable_up_to", "error"]).reset_index()
    text = pd.DataFrame({
        "coefficients": wide["coefficients"],
        "a, b, c": [_triple(row) for _, row in wide.iterrows()],
        "stable up to": _column(wide, "stable_up_to", 2),
        "error": _column(wide, "error", 4),
    })  # fmt: skip
    return {"numbers": wide, "text": text}


def _origin(row: pd.Series) -> str:
    return "published" if row["source"] == "published" else f"{row['data']}, {row['objective']}"


def _triple(row: pd.Series) -> str:
    return ", ".join(_number(row[name], 4) for name in TRIPLE)


def _column(frame: pd.DataFrame, name: str, digits: int) -> list[str]:
    return [_number(value, digits) for value in frame.get(name, [None] * len(frame))]


def _number(value: float | None, digits: int) -> str:
    if value is None or pd.isna(value):
        return "-"
    return "infinite" if math.isinf(value) else f"{value:.{digits}f}"
