"""Newton-Schulz polynomials: odd quintics whose iteration drives singular values to one.

One step maps X to a X + b (X X^T) X + c (X X^T)^2 X, which maps every singular value s to
a s + b s^3 + c s^5 and leaves the singular vectors alone. A polynomial here is one triple
(a, b, c) per step.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Triple = tuple[float, float, float]
PolynomialName = Literal["muon", "cubic", "quintic", "modded_nanogpt", "polar_express", "cans"]

# Keller Jordan's fixed quintic (KellerJordan/Muon, muon.py).
MUON: Triple = (3.4445, -4.7750, 2.0315)
# The classic iterations, exact to third and fifth order at s = 1.
CUBIC: Triple = (1.5, -0.5, 0.0)
QUINTIC: Triple = (15 / 8, -10 / 8, 3 / 8)

# Schedules of one triple per step, which repeat their last triple if more steps are asked for.
SCHEDULES: dict[str, tuple[Triple, ...]] = {
    "muon": (MUON,),
    "cubic": (CUBIC,),
    "quintic": (QUINTIC,),
    # modded-nanogpt's per-step quintic.
    "modded_nanogpt": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # Polar Express (arXiv 2505.16932) with a safety factor, as modded-nanogpt and nanochat use it.
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    # CANS (arXiv 2506.10935).
    "cans": (
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ),
}


def schedule(name: str, steps: int) -> tuple[Triple, ...]:
    """Return one triple per step of a named polynomial; its last triple repeats."""
    triples = SCHEDULES[name]
    return triples[:steps] + triples[-1:] * (steps - len(triples))


def orthogonalize(matrices: Tensor, triples: Sequence[Triple], eps: float = 1e-7) -> Tensor:
    """Return approximate polar factors U V^T of a batch of matrices.

    Args:
        matrices: ... x rows x columns; computed in their own dtype.
        triples: One (a, b, c) per step.
        eps: Added to the Frobenius norm by which each matrix is divided first.
    """
    rows, columns = matrices.shape[-2:]
    x = normalize(matrices.mT if rows > columns else matrices, eps)
    batch = x.reshape(-1, *x.shape[-2:])
    for a, b, c in triples:
        gram = batch @ batch.mT
        # b G + c G G and a X + (...) X, each in one fused multiply-add.
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) if c else b * gram
        batch = torch.baddbmm(batch, polynomial, batch, beta=a)
    x = batch.reshape(x.shape)
    return x.mT if rows > columns else x


def normalize(matrices: Tensor, eps: float) -> Tensor:
    """Return ``matrices`` (... x rows x columns) divided by their Frobenius norms plus ``eps``."""
    # A float32 sum over millions of squares is off by more than the iteration itself.
    norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=torch.float64)
    return matrices / (norm + eps).to(matrices.dtype)


def iterate_singular_values(values: np.ndarray, triples: Sequence[Triple]) -> np.ndarray:
    """Return what the steps of ``triples`` make of singular values, in float64."""
    for a, b, c in triples:
        square = values * values
        values = values * (a + square * (b + square * c))
    return values


def relative_error(values: np.ndarray, triples: Sequence[Triple]) -> float:
    """Return ||X - U V^T||_F / ||U V^T||_F for a matrix with these singular values.

    Args:
        values: Singular values of the matrix divided by its Frobenius norm.
        triples: One (a, b, c) per step.
    """
    return float(np.sqrt(np.mean((iterate_singular_values(values, triples) - 1) ** 2)))
