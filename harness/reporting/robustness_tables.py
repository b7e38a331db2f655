"""Tables of injected faults: what bit flips did to training, and what checksums noticed."""

from collections.abc import Iterator

import pandas as pd

from harness.reporting.results import Results, with_labels
from harness.reporting.table import Table

PERCENT = 100.0
CONDITION = ["target", "precision", "gradient_clip"]


def fault_tables(results: Results, experiment: str) -> Iterator[Table]:
    """Yield how many bit flips did harm, and which bits, by target and condition."""
    rows = results.of(experiment)
    rows = rows[rows["metric"].isin(["fault/harmful", "fault/non_finite"])]
    if rows.empty:
        return
    rows = with_labels(rows, *CONDITION, "bit")
    for place, some in rows.groupby(["model", "dataset", "optimizer"], sort=False):
        numbers = pd.DataFrame([
            dict(zip(CONDITION, condition, strict=True)) | _harm(those)
            for condition, those in some.groupby(CONDITION, sort=False)
        ])  # fmt: skip
        text = pd.DataFrame({
            "flipped in": numbers["target"].str.replace("_", " "),
            "precision": numbers["precision"],
            "clipping": numbers["gradient_clip"].map(str),
            "flips": numbers["flips"],
            "harmful": numbers["harmful"].map(_share),
            "not a number": numbers["non_finite"].map(_share),
            "harm by": numbers["harmful_bits"].str.replace("_", " "),
        })  # fmt: skip
        yield Table(
            name=".".join(["bit_flips", experiment, *place]),
            experiment=experiment,
            title=f"Bit flips that do harm: {' on '.join(place[:2])}, {place[2]}",
            caption=(
                "Share of single bit flips after which the validation loss is higher than without "
                "the fault by more than the tolerance, or no longer a number; and the bits that did"
                " such harm. Every bit in question is hit equally often; the lower mantissa is "
                "left out."
            ),
            numbers=numbers,
            text=text,
        )


def _harm(rows: pd.DataFrame) -> dict[str, object]:
    harmful = rows[rows["metric"] == "fault/harmful"]
    ended = rows[rows["metric"] == "fault/non_finite"]
    bits = dict.fromkeys(harmful["bit"][harmful["value"] == 1])
    return {
        "flips": len(harmful),
        "harmful": float(harmful["value"].mean()),
        "non_finite": float(ended["value"].mean()),
        "harmful_bits": ", ".join(bits) or "-",
    }


def checksum_tables(results: Results, experiment: str) -> Iterator[Table]:
    """Yield what checksums of products noticed under each bound, and what they cost by size."""
    rows = results.of(experiment)
    if "checksum/harmful_detected" not in set(rows["metric"]):
        return
    rows = rows.astype({"value": float})
    rows = with_labels(rows, "bound", "dtype", "size")
    yield _coverage(rows, experiment)
    yield _cost(rows, experiment)


def _coverage(rows: pd.DataFrame, experiment: str) -> Table:
    values = rows.groupby(["metric", "bound"])["value"]
    low, total, high = values.min(), values.sum(), values.max()
    bounds = list(dict.fromkeys(rows["bound"].dropna()))
    numbers = pd.DataFrame([
        {
            "bound": bound,
            "harmful_detected": low.get(("checksum/harmful_detected", bound)),
            "largest_missed": high.get(("checksum/largest_missed", bound), 0.0),
            "false_alarms": total["checksum/false_alarms", bound],
            "clean_margin": high["checksum/clean_margin", bound],
            "located": low.get(("checksum/located", bound)),
            "left_over": high.get(("checksum/left_over", bound)),
        }
        for bound in bounds
    ])  # fmt: skip
    text = pd.DataFrame({
        "bound": numbers["bound"],
        "harmful flips detected": numbers["harmful_detected"].map(_share),
        "largest change missed": numbers["largest_missed"].map("{:.1e}".format),
        "false alarms": numbers["false_alarms"].map("{:.0f}".format),
        "clean product / bound": numbers["clean_margin"].map("{:.1e}".format),
        "wrong entries located": numbers["located"].map(_share),
        "change after correction": numbers["left_over"].map("{:.1e}".format),
    })  # fmt: skip
    return Table(
        name=f"checksums.{experiment}",
        experiment=experiment,
        title="What checksums of a matrix product notice",
        caption=(
            "The worst seed. Changes are over the Frobenius norm of the product. A clean product "
            "over its bound says how near correct products come to a false alarm."
        ),
        numbers=numbers,
        text=text,
    )


def _cost(rows: pd.DataFrame, experiment: str) -> Table:
    ratios = rows[rows["metric"] == "checksum/time_over_plain"].groupby(["dtype", "size"])["value"]
    quantiles = ratios.quantile([0.25, 0.5, 0.75]).unstack().reset_index()
    extra = rows[rows["metric"] == "checksum/extra_operations"]
    closed = extra.groupby(["dtype", "size"])["value"].first()
    numbers = pd.DataFrame({
        "dtype": quantiles["dtype"],
        "size": quantiles["size"].astype(int),
        "ratio": quantiles[0.5],
        "ratio_quartile_1": quantiles[0.25],
        "ratio_quartile_3": quantiles[0.75],
        "operations_ratio": [
            1 + closed[key] for key in zip(quantiles["dtype"], quantiles["size"], strict=True)
        ],
        "rounds": ratios.size().to_numpy(),
    })  # fmt: skip
    text = pd.DataFrame({
        "dtype": numbers["dtype"],
        "size": numbers["size"],
        "time / plain product's": numbers["ratio"].map("{:.2f}".format),
        "middle half of the rounds": [
            f"{low:.2f} to {high:.2f}" for low, high in
            zip(numbers["ratio_quartile_1"], numbers["ratio_quartile_3"], strict=True)
        ],
        "operations / plain product's": numbers["operations_ratio"].map("{:.4f}".format),
    })  # fmt: skip
    return Table(
        name=f"checksum_cost.{experiment}",
        experiment=experiment,
        title="What checksums of a square product cost",
        caption=(
            f"Plain and checked products in turn, {numbers['rounds'].min()} rounds, ratios within "
            "a round. The checks read all matrices again, which their few operations do not show."
        ),
        numbers=numbers,
        text=text,
    )


def _share(value: float | None) -> str:
    return "-" if value is None or pd.isna(value) else f"{value * PERCENT:.4g} %"
