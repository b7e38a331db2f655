"""How well calibrated coefficients orthogonalise each matrix shape, against Muon's."""

from itertools import cycle

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from harness.reporting.results import Results, label
from harness.reporting.style import WIDTH, colours

ORDER = 60
TITLE = "Orthogonalisation error by matrix shape"
CAPTION = (
    "Relative Frobenius error after all Newton-Schulz steps on Gaussian matrices of each shape: "
    "one fixed triple for all shapes (Muon) against one per shape (ROOT's AdaNewton). Optimizers "
    "with the same coefficients are shown once."
)
MARKERS = ("D", "o", "^", "v")


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return the figure, if the scale used an optimizer that is calibrated."""
    records = results.of("calibration")
    if records.empty:
        return {}
    frame = records.assign(rows=label(records, "rows"), columns=label(records, "columns"))
    shapes = ["rows", "columns"]
    errors = frame[frame["metric"] == "calibration/error"].pivot_table(
        index=shapes, columns="optimizer", values="value"
    )
    errors = errors[[name for name in results.optimizers if name in errors]]
    errors = errors.T.drop_duplicates().T.astype(float)
    muon = frame[frame["metric"] == "calibration/error_muon"].groupby(shapes)["value"].first()
    names = [f"{rows} x {columns}" for rows, columns in errors.index]
    colour = colours(results.optimizers)
    figure, ax = plt.subplots(figsize=(WIDTH, 0.9 + 0.32 * len(names)))
    places = range(len(names))
    ax.hlines(places, errors.min(axis=1), muon.astype(float), color="0.7")
    ax.plot(muon, places, "s", label="muon", color=colour.get("muon", "black"))
    for name, marker in zip(errors, cycle(MARKERS), strict=False):
        ax.plot(errors[name], places, marker, label=name, color=colour[name])
    ax.set_yticks(places, names)
    ax.set(xlabel="relative error", ylabel="matrix")
    ax.margins(y=0.1)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return {"calibration_error": ("calibration", figure)}
