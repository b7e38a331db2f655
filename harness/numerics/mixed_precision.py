"""Newton-Schulz with bfloat16 products and a result within 1e-2 of Muon's exact polynomial.

Rounding every intermediate to bfloat16, as is usual, puts noise into directions in which the
matrix has almost nothing, and the small-value gain of the early steps (a^5, nearly 500 for Muon)
turns it into an error of several per cent for momentum of real training and of more than the
update itself for low rank. Here one step X <- aX + PX, with P = bG + cG^2 and G = X X^T, keeps X in
float32 and rounds only what is multiplied, H = bf16(X). What rounding could still spoil is kept
small by splitting off multiples of the identity, which are applied in float32:

- G = g I + G' with g about the mean of its diagonal, so that this does not swamp the rest;
- P H = w H + (P - w I) H with w the value of P at the energy-weighted mean eigenvalue of G, so that
  the product that is rounded vanishes where most of X is;
- the rounding error X - H sees P as about t: w where the spectrum is flat, 0 where P acts on
  directions that later steps still amplify.

Shape suffixes: B matrices, M smaller side, N larger side.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.numerics.orthogonalization import Triple, normalize, orthogonalize

# Below this side float32 products are as fast on a CPU, and exact.
SMALLEST_SIDE = 256
# A spectrum counts as flat from this share of a Gaussian matrix's participation on: plain
# bfloat16 steps are then within 1e-2 too.
FLAT = 0.75
# Where later steps amplify small values more than this, the rounding of a product is added back.
RESIDUAL_GAIN = 10.0
# Keeps zero matrices zero where others are divided by their own size.
_TINY = 1e-12


def orthogonalize_bfloat16_(
    matrices: list[Tensor], triples: Sequence[Triple], eps: float = 1e-7
) -> None:
    """Replace matrices of one shape by their approximate polar factors U V^T.

    Args:
        matrices: Contiguous float32 matrices on one device.
        triples: One (a, b, c) per step.
        eps: Added to the Frobenius norm by which each matrix is divided first.
    """
    rows, columns = matrices[0].shape
    if matrices[0].device.type != "cpu":
        batch = normalize(torch.stack(matrices), eps)
        result = iterate_batch(batch.mT if rows > columns else batch, triples)
        torch._foreach_copy_(matrices, list(result.mT if rows > columns else result))
    elif min(rows, columns) < SMALLEST_SIDE:
        result = orthogonalize(torch.stack(matrices), triples, eps)
        torch._foreach_copy_(matrices, list(result))
    else:
        iteration = CpuIteration(matrices[0])
        for matrix in matrices:
            matrix.div_(math.sqrt(_energy(matrix)) + eps)
            iteration.run_(matrix, triples)


def iterate_batch(x_BMN: Tensor, triples: Sequence[Triple]) -> Tensor:
    """Return the matrices after all steps, without the host ever waiting for the device.

    Args:
        x_BMN: Float32 matrices of unit Frobenius norm, not taller than wide.
        triples: One (a, b, c) per step.
    """
    side = x_BMN.shape[1]
    for step, (a, b, c) in enumerate(triples):
        later = math.prod(triple[0] for triple in triples[step + 1 :])
        h_BMN = x_BMN.bfloat16()
        energy = x_BMN.square().sum((1, 2), keepdim=True).clamp_min(_TINY)
        mean = energy / side
        gram = _product(h_BMN, h_BMN.mT)
        gram.diagonal(dim1=1, dim2=2).sub_(mean[:, 0])
        squares = gram.square().sum((1, 2), keepdim=True) + side * mean.square()
        weighted, tolerated = _splits(energy, squares, side, (a, b, c), later)
        rounded = gram.bfloat16()
        p_BMM = gram.mul_(b + 2 * c * mean).add_(_product(rounded, rounded), alpha=c)
        shift = b * mean + c * mean.square() - weighted
        diagonal = p_BMM.diagonal(dim1=1, dim2=2).add_(shift[:, 0])
        p_rounded = p_BMM.bfloat16()
        lost = (diagonal - p_rounded.diagonal(dim1=1, dim2=2)).unsqueeze(2)
        product = _product(p_rounded, h_BMN)
        x_BMN = (a + tolerated) * x_BMN + (weighted - tolerated + lost) * h_BMN + product
    return x_BMN


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the float32 product of bfloat16 batches."""
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    # CPU kernels round their result; this gives what a GPU's accumulators hold.
    return left.float() @ right.float()


def _splits(energy: Any, squares: Any, side: int, triple: Triple, later: float) -> tuple[Any, Any]:
    """Return w and t of the module's description, as numbers or tensors like ``energy``.

    Args:
        energy: tr G.
        squares: ||G||_F^2.
        side: Rows of G.
        triple: (a, b, c) of this step.
        later: Product of a over the later steps, their gain for small singular values.
    """
    _, b, c = triple
    eigenvalue = squares / energy
    weighted = b * eigenvalue + c * eigenvalue * eigenvalue
    # Directions that hold the energy over those that do not, as if it were spread evenly. The
    # difference is never negative but for rounding.
    odds = energy * energy / (abs(side * squares - energy * energy) + _TINY * _TINY)
    return weighted, weighted * odds / (odds + later * later)


class CpuIteration:
    """The same iteration for one CPU matrix at a time, in buffers that all matrices share.

    CPU kernels round bfloat16 products to bfloat16. The part lost is computed by a second product
    where later steps would amplify it. Symmetric products skip the blocks above the diagonal.
    Matrices with a flat spectrum take plain bfloat16 steps, which are accurate for them.
    """

    def __init__(self, like: Tensor) -> None:
        side = min(like.shape)
        self.tall = like.shape[0] > like.shape[1]
        self.h = torch.empty_like(like, dtype=torch.bfloat16)
        self.product = torch.empty_like(self.h)
        self.wide = torch.empty_like(like)
        self.gram, self.p = (torch.empty(side, side, dtype=torch.bfloat16) for _ in range(2))
        self.minus_identity = -torch.eye(side, dtype=torch.bfloat16)
        self.square = torch.empty(side, side)
        # A Gaussian matrix of this shape has a participation of 1 / (1 + rows / columns).
        self.flat = FLAT / (1 + side / max(like.shape))

    def run_(self, x: Tensor, triples: Sequence[Triple]) -> None:
        """Take all steps on ``x``, a contiguous float32 matrix of unit Frobenius norm."""
        self.h.copy_(x)
        side = len(self.gram)
        for step, triple in enumerate(triples):
            energy = max(_energy(x), _TINY)
            split = _split_point(energy / side)
            self._gram(split)
            self.square.copy_(self.gram)
            row_squares = torch.linalg.vecdot(self.square, self.square)
            # Of G = split I + G', with tr G' = energy - side split.
            squares = row_squares.sum().item() + split * (2 * energy - side * split)
            if step == 0 and energy * energy >= self.flat * side * squares:
                self._run_flat(triples, split)
                x.copy_(self.h)
                return
            later = math.prod(following[0] for following in triples[step + 1 :])
            weighted, tolerated = _splits(energy, squares, side, triple, later)
            self._step(x, triple, later, split, row_squares, weighted, tolerated)
            self.h.copy_(x)

    def _step(
        self, x: Tensor, triple: Triple, later: float, split: float, row_squares: Tensor,
        weighted: float, tolerated: float,
    ) -> None:  # fmt: skip
        slope, constant = _around(split, triple)
        self._symmetric(self.gram, self.gram, slope, triple[2], self.p)
        exact = self.square.diagonal() * slope + row_squares * triple[2] + (constant - weighted)
        diagonal = self.p.diagonal()
        diagonal.copy_(exact)
        of_h = exact - diagonal + (weighted - tolerated)
        x.mul_(triple[0] + tolerated)
        x.addcmul_(self.wide.copy_(self.h), of_h if self.tall else of_h[:, None])
        self._multiply(self.product, 0.0)
        x.add_(self.wide.copy_(self.product))
        if later > RESIDUAL_GAIN:
            self._multiply(self.product, -1.0)
            x.add_(self.wide.copy_(self.product))

    def _run_flat(self, triples: Sequence[Triple], split: float) -> None:
        """Take plain bfloat16 steps on ``h``, whose first Gram matrix is there already."""
        for step, triple in enumerate(triples):
            if step:
                split = _split_point(_energy(self.wide.copy_(self.h)) / len(self.gram))
                self._gram(split)
            slope, constant = _around(split, triple)
            self._symmetric(self.gram, self.gram, slope, triple[2], self.p)
            self._multiply(self.h, triple[0] + constant)
            self.h, self.product = self.product, self.h

    def _gram(self, split: float) -> None:
        """Set ``gram`` to H H^T - split I."""
        rows = self.h.T if self.tall else self.h
        self._symmetric(rows, self.minus_identity, split, 1.0, self.gram)

    def _multiply(self, addend: Tensor, beta: float) -> None:
        """Set ``product`` to P H + beta addend."""
        factors = (self.h, self.p) if self.tall else (self.p, self.h)
        torch.addmm(addend, *factors, beta=beta, out=self.product)

    def _symmetric(
        self, rows: Tensor, addend: Tensor, beta: float, alpha: float, out: Tensor
    ) -> None:
        """Set ``out`` to alpha rows rows^T + beta addend, block row by block row."""
        side = len(out)
        size = -(-side // _block_rows(side))
        for start in range(0, side, size):
            end = start + size
            torch.addmm(
                addend[start:end, :end], rows[start:end], rows[:end].T,
                beta=beta, alpha=alpha, out=out[start:end, :end],
            )  # fmt: skip
        for end in range(size, side, size):
            out[end - size : end, end:].copy_(out[end:, end - size : end].T)


def _block_rows(side: int) -> int:
    """Return into how many block rows a symmetric product is cut; small blocks are slow."""
    return 2 if side < 512 else 3 if side < 1024 else 4


def _split_point(mean: float) -> float:
    """Return g near the mean of G's diagonal, from few values.

    oneDNN compiles a kernel for every factor that a product is scaled by.
    """
    return round(8 * mean) / 8


def _around(split: float, triple: Triple) -> tuple[float, float]:
    """Return slope and constant of b G + c G^2 = constant I + slope G' + c G'^2."""
    _, b, c = triple
    return b + 2 * c * split, split * (b + c * split)


def _energy(x: Tensor) -> float:
    flat = x.view(-1)
    return torch.dot(flat, flat).item()
