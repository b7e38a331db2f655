"""How well ROOT's coefficients orthogonalise each matrix shape, against Muon's."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from harness.reporting.results import Results, label
from harness.reporting.style import WIDTH, colours

ORDER = 60
TITLE = "Orthogonalisation error by matrix shape"
CAPTION = (
    "Relative Frobenius error after all Newton-Schulz steps on Gaussian matrices of each shape: "
    "one fixed triple for all shapes (Muon) against one per shape (ROOT's AdaNewton)."
)


def draw(results: Results) -> dict[str, tuple[str, Figure]]:
    """Return the figure, if the scale used an optimizer that is calibrated."""
    records = results.of("calibration")
    if records.empty:
        return {}
    frame = records.assign(rows=label(records, "rows"), columns=label(records, "columns"))
    wide = frame.pivot_table(index=["rows", "columns"], columns="metric", values="value")
    names = [f"{rows} x {columns}" for rows, columns in wide.index]
    colour = colours(results.optimizers)
    figure, ax = plt.subplots(figsize=(WIDTH, 0.9 + 0.32 * len(names)))
    places = range(len(names))
    ax.hlines(places, wide["calibration/error"], wide["calibration/error_muon"], color="0.7")
    for metric, name, marker in (("error_muon", "muon", "s"), ("error", "root", "D")):
        ax.plot(wide[f"calibration/{metric}"], places, marker, label=name,
                color=colour.get(name, "black"))  # fmt: skip
    ax.set_yticks(places, names)
    ax.set(xlabel="relative error", ylabel="matrix")
    ax.margins(y=0.1)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return {"calibration_error": ("calibration", figure)}
