"""Recording what the optimizer orthogonalises and how its gradients are distributed."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from harness.optimizers import CompositeOptimizer, Orthogonalizing
from harness.optimizers.matrices import named_matrices, parts
from harness.records.run_folder import RunFolder
from harness.records.snapshots import EDGES, PROBABILITIES, Snapshot, write_snapshot

# Entries per matrix that stand for its gradient: the largest models have a billion, too many to
# sort, and of these every matrix alone has dozens beyond the outermost quantiles.
SAMPLED = 2**18
# A prime, so that multiples of it visit all rows and columns of a matrix evenly.
STRIDE = 7_368_787


class Recorder:
    """Takes a snapshot at the first step and then every ``interval`` steps; only ever reads.

    Where no part of the optimizer can say what it orthogonalises there is nothing to record.
    """

    def __init__(
        self, folder: RunFolder, model: nn.Module, optimizer: CompositeOptimizer, training: dict
    ) -> None:
        self.folder, self.interval = folder, training["recording_interval"]
        owners = {
            parameter: part
            for part in optimizer.parts.values()
            if isinstance(part, Orthogonalizing)
            for group in part.param_groups
            for parameter in group["params"]
        }
        self.matrices = [
            (name, parameter, owners[parameter])
            for name, parameter in model.named_parameters()
            if parameter in owners
        ]
        self.steps = [step for step in range(1, training["steps"] + 1) if self._is_due(step)]
        self._seconds = 0.0

    def after_step(self, step: int) -> None:
        """Look at the step with number ``step``, from 1, while its gradients are still there."""
        if self._is_due(step):
            with self._timed():
                self._record(step)

    def take_seconds(self) -> float:
        """Return the time spent recording since the last call: it is not the training's."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _is_due(self, step: int) -> bool:
        if self.interval is None or not self.matrices:
            return False
        return step == 1 or step % self.interval == 0

    def _record(self, step: int) -> None:
        spectra: dict[str, np.ndarray] = {}
        gradients: list[Tensor] = []
        for name, parameter, part in self.matrices:
            if parameter.grad is not None:
                direction = part.direction(parameter)
                if not bool(torch.isfinite(direction).all()):
                    # The run is about to end as diverged.
                    return
                for matrix_name, matrix in named_matrices(name, direction).items():
                    # An expert that no token has reached yet is zero: nothing to orthogonalise.
                    if matrix.any():
                        spectra[matrix_name] = singular_values(matrix)
                gradients.extend(parts(parameter.grad))
        # Clipping by the global norm scales all gradients, which standardising takes out again.
        write_snapshot(self.folder, Snapshot(step, spectra, *gradient_distribution(gradients)))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        device = self.matrices[0][1].device
        if device.type == "cuda":
            # What the device still has to do belongs to training.
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - start


@torch.no_grad()
def singular_values(matrix: Tensor) -> np.ndarray:
    """Return the ascending singular values of ``matrix`` over its Frobenius norm, in float64.

    As roots of the eigenvalues of the smaller Gram matrix, which costs a fraction of a singular
    value decomposition. Values below 1e-8 are lost in rounding; five steps leave them near zero.
    """
    x = matrix.double()
    # A matrix of zeros keeps its zeros.
    x = x / torch.linalg.vector_norm(x).clamp(min=torch.finfo(x.dtype).tiny)
    gram = x @ x.mT if x.shape[0] <= x.shape[1] else x.mT @ x
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().cpu().numpy()


@torch.no_grad()
def gradient_distribution(gradients: Iterable[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return quantiles and histogram of gradients, each with its own mean and deviation taken out.

    Args:
        gradients: Of any shapes; of large ones ``SAMPLED`` entries are counted.

    Returns:
        Quantiles at ``PROBABILITIES`` and counts between ``EDGES``.
    """
    pooled = torch.cat([_standardized(gradient) for gradient in gradients]).cpu().numpy()
    counts, _ = np.histogram(pooled.clip(EDGES[0], EDGES[-1]), EDGES)
    return np.quantile(pooled, PROBABILITIES), counts


def _standardized(gradient: Tensor) -> Tensor:
    values = gradient.flatten()
    deviation, mean = torch.std_mean(values.double(), correction=0)
    if len(values) > SAMPLED:
        places = torch.arange(SAMPLED, device=values.device) * STRIDE % len(values)
        values = values[places]
    return (values.double() - mean) / deviation.clamp(min=torch.finfo(deviation.dtype).tiny)
