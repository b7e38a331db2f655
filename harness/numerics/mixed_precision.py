"""Newton-Schulz with bfloat16 products and a result within 1e-2 of Muon's exact polynomial.

Within 1.5e-2, that is, where all singular values are the same or a few entries hold most of the
matrix. Rounding every intermediate to bfloat16, as is usual, puts noise into directions in which
the matrix has almost nothing, and the small-value gain of the early steps (a^5, nearly 500 for
Muon) turns it into an error of several per cent for momentum of real training and of more than the
update itself for low rank. Here one step X <- aX + PX, with P = bG + cG^2 and G = X X^T, keeps X in
float32 and rounds only what is multiplied, H = bf16(X). What rounding could still spoil is kept
small:

- G = g I + G' with g about the mean of its diagonal, so that this does not swamp the rest;
- what rounding takes from the diagonal of P is applied in float32, to X row by row;
- the rounding error X - H, which PH leaves out, sees P as about t: the energy-weighted mean of its
  eigenvalues where the spectrum is flat, 0 where P acts on directions that later steps still
  amplify.

Shape suffixes: B matrices, M smaller side, N larger side, R rows, C columns.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.numerics.orthogonalization import Triple, normalize, orthogonalize

# Below this side float32 products are as fast on a CPU, and exact.
SMALLEST_SIDE = 256
# Noise that a CPU's rounding of a product may leave in the result, relative to it.
TOLERATED_NOISE = 3e-3
# Root mean square of a rounding error relative to the number that is rounded to bfloat16, at most.
_ROUNDING = 2**-9 / math.sqrt(3)
# One row of so many tells a CPU how large a matrix is. A prime, as patterns repeat by others.
_SAMPLED = 17
# Keeps zero matrices zero where others are divided by their own size.
_TINY = 1e-12


def orthogonalize_bfloat16(x_BRC: Tensor, triples: Sequence[Triple], eps: float = 1e-7) -> Tensor:
    """Return approximate polar factors U V^T of float32 matrices, which may be overwritten.

    Args:
        x_BRC: Contiguous matrices.
        triples: One (a, b, c) per step.
        eps: Added to the Frobenius norm by which each matrix is divided first.
    """
    rows, columns = x_BRC.shape[1:]
    if not x_BRC.is_cpu:
        x_BRC = normalize(x_BRC, eps)
        result = iterate_batch(x_BRC.mT if rows > columns else x_BRC, triples)
        return result.mT if rows > columns else result
    if min(rows, columns) < SMALLEST_SIDE:
        return orthogonalize(x_BRC, triples, eps)
    x_BRC.div_(torch.linalg.vector_norm(x_BRC, dim=(1, 2), keepdim=True) + eps)
    CpuIteration(x_BRC).run(triples)
    return x_BRC


def iterate_batch(x_BMN: Tensor, triples: Sequence[Triple]) -> Tensor:
    """Return the matrices after all steps, without the host ever waiting for the device.

    Args:
        x_BMN: Float32 matrices of unit Frobenius norm, not taller than wide; overwritten.
        triples: One (a, b, c) per step.
    """
    for step, triple in enumerate(triples):
        _step_(x_BMN, triple, _gain(triples[step + 1 :]))
    return x_BMN


def _step_(x_BMN: Tensor, triple: Triple, gain: float) -> None:
    a, b, c = triple
    side = x_BMN.shape[1]
    h_BMN = x_BMN.bfloat16()
    energy = _squares(x_BMN).clamp_min(_TINY)
    mean = energy / side
    gram = _product(h_BMN, h_BMN.mT)
    gram.diagonal(dim1=1, dim2=2).sub_(mean[:, 0])
    squares = _squares(gram) + side * mean.square()
    tolerated = _tolerated(energy, squares, side, triple, gain)
    rounded = gram.bfloat16()
    p_BMM = gram.mul_(b + 2 * c * mean).add_(_product(rounded, rounded), alpha=c)
    shift = b * mean + c * mean.square() - tolerated
    diagonal = p_BMM.diagonal(dim1=1, dim2=2).add_(shift[:, 0])
    p_rounded = p_BMM.bfloat16()
    lost = (diagonal - p_rounded.diagonal(dim1=1, dim2=2)).unsqueeze(2)
    # In the layout of X, also where that is the transpose of tall matrices.
    wide = h_BMN.is_contiguous()
    product = _product(p_rounded, h_BMN) if wide else _product(h_BMN.mT, p_rounded).mT
    x_BMN.mul_(a + tolerated + lost).add_(product)


def _squares(batch: Tensor) -> Tensor:
    """Return ||X||_F^2 of each matrix, count x 1 x 1."""
    return torch.linalg.vector_norm(batch, dim=(1, 2), keepdim=True).square()


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the float32 product of bfloat16 batches."""
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    # CPU kernels round their result; this gives what a GPU's accumulators hold.
    return left.float() @ right.float()


def _gain(later: Sequence[Triple]) -> float:
    """Return by how much the steps that are left amplify small singular values."""
    return math.prod(a for a, _, _ in later)


def _tolerated(energy: Tensor, squares: Tensor, side: int, triple: Triple, gain: float) -> Tensor:
    """Return t of the module's description.

    Args:
        energy: tr G, of any shape.
        squares: ||G||_F^2, of the same shape.
        side: Rows of G.
        triple: (a, b, c) of this step.
        gain: Of the later steps.
    """
    _, b, c = triple
    eigenvalue = squares / energy
    # Directions that hold the energy over those that do not, as if it were spread evenly. The
    # difference is never negative but for rounding.
    odds = energy * energy / ((side * squares - energy * energy).abs() + _TINY * _TINY)
    return (b * eigenvalue + c * eigenvalue * eigenvalue) * odds / (odds + gain * gain)


class CpuIteration:
    """The same iteration for a batch on a CPU, in buffers of its own.

    CPU kernels round bfloat16 products to bfloat16. The part lost is computed by a second product
    where its noise, amplified by the later steps, could show in the result.

    Args:
        x_BRC: Contiguous float32 matrices of unit Frobenius norm; ``run`` works in place.
    """

    def __init__(self, x_BRC: Tensor) -> None:
        count, rows, columns = x_BRC.shape
        self.side = min(rows, columns)
        self.tall = rows > columns
        self.x = x_BRC
        self.wide = torch.empty_like(x_BRC[0])
        self.h, self.product = (torch.empty_like(x_BRC, dtype=torch.bfloat16) for _ in range(2))
        self.gram, self.p = (
            torch.empty(count, self.side, self.side, dtype=torch.bfloat16) for _ in range(2)
        )
        self.identity = torch.eye(self.side, dtype=torch.bfloat16)

    def run(self, triples: Sequence[Triple]) -> None:
        """Take all steps, one per (a, b, c)."""
        for step, triple in enumerate(triples):
            self._step(triple, _gain(triples[step + 1 :]))

    def _step(self, triple: Triple, gain: float) -> None:
        a, b, c = triple
        self.h.copy_(self.x)
        h_BMN = self.h.mT if self.tall else self.h
        energy = _sampled_squares(self.h)
        # In eighths: oneDNN compiles a kernel for every factor that a product is scaled by.
        eighths = 8 * energy.mean().item() / self.side
        split = round(eighths) / 8 if math.isfinite(eighths) else 0.0
        if split:
            torch.baddbmm(self.identity, h_BMN, h_BMN.mT, beta=-split, out=self.gram)
        else:
            torch.bmm(h_BMN, h_BMN.mT, out=self.gram)
        # Of G = split I + G'.
        squares = _sampled_squares(self.gram) + split * (2 * energy - self.side * split)
        # b G + c G^2 = constant I + slope G' + c G'^2.
        slope, constant = b + 2 * c * split, split * (b + c * split)
        torch.baddbmm(self.gram, self.gram, self.gram, beta=slope, alpha=c, out=self.p)
        tolerated = _tolerated(energy, squares, self.side, triple, gain)
        diagonal = self.p.diagonal(dim1=1, dim2=2)
        exact = diagonal.float().add_((constant - tolerated)[:, None])
        of_x = exact.sub(diagonal.copy_(exact)).add_((a + tolerated)[:, None])
        factors = (self.h, self.p) if self.tall else (self.p, self.h)
        torch.bmm(*factors, out=self.product)
        of_x = of_x[:, None] if self.tall else of_x[:, :, None]
        for x, product, of_it in zip(self.x, self.product, of_x, strict=True):
            torch.addcmul(self.wide.copy_(product), x, of_it, out=x)
        noise = _ROUNDING * gain * _sampled_squares(self.product).sqrt()
        # The result's norm is about the root of its rank, which the participation bounds below.
        if bool((noise > TOLERATED_NOISE * energy / squares.sqrt()).any()):
            self.product.baddbmm_(*factors, beta=-1)
            for x, product in zip(self.x, self.product, strict=True):
                x.add_(self.wide.copy_(product))


def _sampled_squares(batch: Tensor) -> Tensor:
    """Return an estimate of ||X||_F^2 for each matrix of ``batch``, from some of its rows."""
    sample = batch[:, ::_SAMPLED].float()
    squares = torch.linalg.vector_norm(sample, dim=(1, 2)).square_()
    return squares.mul_(batch.shape[1] / sample.shape[1]).clamp_min_(_TINY)
