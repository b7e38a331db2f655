"""What a run recorded of its gradients and of what it orthogonalised: one file per recorded step.

A run that is resumed writes the files after its checkpoint again, with the same content.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from harness.errors import UserError
from harness.files import write_atomically
from harness.records.run_folder import RunFolder, require_summary

_TAIL = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
# Dense in the tails, where outliers show.
PROBABILITIES = np.array([*_TAIL, *np.arange(1, 10) / 10, *(1 - p for p in reversed(_TAIL))])
# Of the bins, in standard deviations; what lies beyond counts in the outermost ones.
EDGES = np.arange(-80, 81) / 4
_SPECTRUM = "spectrum/"


@dataclass(frozen=True)
class Snapshot:
    """One recorded step.

    Attributes:
        step: Steps taken, this one included.
        spectra: By matrix name (the parameter's; ``name[0]``, ``name[1]`` and so on in a batch) the
            ascending singular values of each matrix that this step orthogonalised and that is not
            zero, over its Frobenius norm.
        quantiles: At ``PROBABILITIES``, of the hidden matrices' gradients, each standardised.
        histogram: Counts of the same values between ``EDGES``.
    """

    step: int
    spectra: dict[str, np.ndarray]
    quantiles: np.ndarray
    histogram: np.ndarray


def write_snapshot(folder: RunFolder, snapshot: Snapshot) -> None:
    """Write ``snapshot`` into the folder of its run; equal content is equal bytes."""
    content = {f"{_SPECTRUM}{name}": values for name, values in snapshot.spectra.items()}
    content |= {"quantiles": snapshot.quantiles, "histogram": snapshot.histogram}
    write_atomically(_path(folder, snapshot.step), save(content))


def read_snapshots(folder: RunFolder) -> Iterator[Snapshot]:
    """Yield what a run recorded, in the order of its steps; nothing of one that did not complete.

    Raises:
        UserError: If the run is gone, or a file is missing or damaged.
    """
    for step in require_summary(folder).get("snapshots", ()):
        path = _path(folder, step)
        if not path.is_file():
            raise UserError(f"{path}: no such file, but the run recorded it; delete {folder.path} "
                            "to train this run again")  # fmt: skip
        try:
            content = load_file(path)
        except SafetensorError as error:
            raise UserError(
                f"{path}: found no whole file ({error}), expected what the run recorded; delete "
                f"{folder.path} to train this run again"
            ) from None
        spectra = {
            name.removeprefix(_SPECTRUM): values
            for name, values in content.items()
            if name.startswith(_SPECTRUM)
        }
        yield Snapshot(step, spectra, content["quantiles"], content["histogram"])


def _path(folder: RunFolder, step: int) -> Path:
    return folder.path / "snapshots" / f"step-{step}.safetensors"
