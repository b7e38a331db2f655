"""Matrix products that check themselves: algorithm-based fault tolerance.

Huang and Abraham (IEEE Transactions on Computers C-33, 1984): the column sums of the left factor
times the right one are the column sums of the product, and the same for rows. One wrong entry of
the product breaks one column sum and one row sum; where they cross it is, and the sum of its column
says what it should be.

Sums agree up to rounding only. With unit roundoff u, an entry of a product over K elements, in
whatever order they are added, is within g_K (|A||B|)_ij of the exact one, g_K = K u / (1 - K u)
(Higham, Accuracy and Stability of Numerical Algorithms, 2002, sections 3.1 and 3.5), and
(|A||B|)_ij is at most the norm of a row times that of a column. The sum over a column j is then
within g_K (sum_i |a_i|) |b_j| of its checksum, which is held in float64: the deterministic bound.

It assumes that all roundings conspire. If they are mean-independent, as in the probabilistic
analysis of Higham and Mary (SIAM Journal on Scientific Computing 41, 2019; as a martingale:
Connolly, Higham and Mary, same journal 43, 2021), the Azuma-Hoeffding inequality over the M K
roundings of a column, each at most u |a_i| |b_j|, gives l u sqrt(K) |A|_F |b_j| with a chance of
failure of at most 2 exp(-l^2 / 2): the probabilistic bound, smaller by sqrt(M K) / l.

Legend of shape suffixes: M rows, K inner, N columns.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Bound = Literal["deterministic", "probabilistic"]

DOUBLE = torch.float64
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
# Tensor cores cut sums off instead of rounding them: Fasi et al., PeerJ Computer Science 7, 2021.
TRUNCATION = 2.0**-23
# Chance that the probabilistic bound refuses a correct product.
FALSE_ALARM = 1e-9


@dataclass(frozen=True)
class Checksums:
    """What is known of the factors before they are multiplied, in float64.

    Attributes:
        left_K: Column sums of the left factor.
        right_K: Row sums of the right factor.
        left_norms_M: Euclidean norms of the rows of the left factor.
        right_norms_N: Those of the columns of the right factor.
    """

    left_K: Tensor
    right_K: Tensor
    left_norms_M: Tensor
    right_norms_N: Tensor


@dataclass(frozen=True)
class Verdict:
    """What the sums of a product say.

    Attributes:
        rows: Rows whose sum is off by more than rounding explains.
        columns: Columns of which that is true.
        column_sums_N: What the sums of the columns should be, in float64.
        largest: The largest difference of a sum over what rounding explains.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    column_sums_N: Tensor
    largest: float

    @property
    def is_clean(self) -> bool:
        """Whether every sum agrees."""
        return not self.rows and not self.columns

    @property
    def place(self) -> tuple[int, int] | None:
        """Row and column of the one entry that is wrong; None if the sums do not single it out."""
        if len(self.rows) == 1 and len(self.columns) == 1:
            return self.rows[0], self.columns[0]
        return None


def product(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """Return the product in float32 of factors in float32 or bfloat16.

    On CUDA bfloat16 goes to tensor cores; elsewhere it is widened first, which is exact.

    Raises:
        ValueError: If the factors do not fit each other, have another type, or if torch may round
            float32 factors to less.
    """
    _check(left_MK, right_KN)
    if left_MK.dtype == torch.bfloat16 and left_MK.is_cuda:
        return torch.mm(left_MK, right_KN, out_dtype=torch.float32)
    return left_MK.float() @ right_KN.float()


def encode(left_MK: Tensor, right_KN: Tensor) -> Checksums:
    """Return the checksums of two factors."""
    return Checksums(
        left_MK.sum(0, dtype=DOUBLE),
        right_KN.sum(1, dtype=DOUBLE),
        torch.linalg.vector_norm(left_MK, dim=1, dtype=DOUBLE),
        torch.linalg.vector_norm(right_KN, dim=0, dtype=DOUBLE),
    )


def verify(
    left_MK: Tensor,
    right_KN: Tensor,
    product_MN: Tensor,
    checksums: Checksums,
    bound: Bound = "deterministic",
) -> Verdict:
    """Compare the sums of a product with the checksums of its factors.

    Args:
        left_MK: The left factor as it was multiplied.
        right_KN: The right one.
        product_MN: Their product in float32.
        checksums: Of the factors, from before the product.
        bound: ``deterministic`` never refuses a correct product; ``probabilistic`` does with a
            chance of ``FALSE_ALARM`` if roundings are independent, and overlooks less.

    Raises:
        ValueError: If the probabilistic bound is asked of tensor cores, whose errors have a bias.
    """
    unit = _unit(left_MK, bound)
    inner = left_MK.shape[1]
    left_norms_M, right_norms_N = checksums.left_norms_M, checksums.right_norms_N
    column_sums_N = checksums.left_K @ right_KN.to(DOUBLE)
    row_sums_M = left_MK.to(DOUBLE) @ checksums.right_K
    columns_N = (product_MN.sum(0, dtype=DOUBLE) - column_sums_N).abs() / tolerances(
        left_norms_M, right_norms_N, inner, bound, unit
    )
    rows_M = (product_MN.sum(1, dtype=DOUBLE) - row_sums_M).abs() / tolerances(
        right_norms_N, left_norms_M, inner, bound, unit
    )
    largest = torch.maximum(columns_N.max(), rows_M.max()).item()
    return Verdict(_off(rows_M), _off(columns_N), column_sums_N, largest)


def tolerances(summed: Tensor, norms: Tensor, inner: int, bound: Bound, unit: float) -> Tensor:
    """Return by how much the sums of a product may differ from their checksums, in float64.

    Args:
        summed: Norms of the vectors over whose products each sum goes.
        norms: Norms of the vectors that have one sum each.
        inner: K.
        bound: Which of the two in the description of this module.
        unit: Largest relative error of one rounding of the product.

    Raises:
        ValueError: If so many roundings leave nothing certain.
    """
    if inner * unit >= 1:
        raise ValueError(f"found an inner dimension of {inner}, expected less than {1 / unit:g}")
    gamma = inner * unit / (1 - inner * unit)
    if bound == "deterministic":
        rounding = gamma * summed.sum()
    else:
        chances = 2 * (len(summed) + len(norms)) / FALSE_ALARM
        width = math.sqrt(2 * math.log(chances)) * (1 + gamma)
        rounding = width * unit * math.sqrt(inner) * torch.linalg.vector_norm(summed)
    # Either side of the comparison goes through fewer roundings in float64 than this.
    double = (len(summed) + inner) * UNIT_ROUNDOFF[DOUBLE]
    # Products below the normal numbers may lose all their digits.
    lost = inner * len(summed) * torch.finfo(torch.float32).tiny
    return (rounding + 4 * double * summed.sum()) * norms + lost


def checksummed_product(
    left_MK: Tensor, right_KN: Tensor, bound: Bound = "deterministic"
) -> tuple[Tensor, Verdict]:
    """Return the product (M x N, float32) and whether its sums agree with its factors.

    Args:
        left_MK: float32 or bfloat16.
        right_KN: Of the same type.
        bound: As in ``verify``.

    Raises:
        ValueError: As ``product`` does.
    """
    _check(left_MK, right_KN)
    checksums = encode(left_MK, right_KN)
    found_MN = product(left_MK, right_KN)
    return found_MN, verify(left_MK, right_KN, found_MN, checksums, bound)


def correct(product_MN: Tensor, verdict: Verdict) -> Tensor:
    """Return a copy in which the one wrong entry is what the sum of its column leaves for it.

    Raises:
        ValueError: If the verdict does not single out an entry.
    """
    if verdict.place is None:
        raise ValueError(
            f"found {len(verdict.rows)} rows and {len(verdict.columns)} columns off, expected one "
            "of each: only a single wrong entry can be corrected"
        )
    row, column = verdict.place
    others = product_MN[:, column].to(DOUBLE)
    others[row] = 0
    mended = product_MN.clone()
    mended[row, column] = verdict.column_sums_N[column] - others.sum()
    return mended


def extra_operations(rows: int, inner: int, columns: int) -> int:
    """Return additions and multiplications that the checks add to the 2 M N K of a product.

    Sums and squared norms of both factors, the products of the sums with the other factor, and the
    sums of the product by row and by column.
    """
    return 5 * (rows * inner + inner * columns) + 2 * rows * columns


def _unit(factor: Tensor, bound: Bound) -> float:
    if not (factor.is_cuda and factor.dtype == torch.bfloat16):
        return UNIT_ROUNDOFF[torch.float32]
    if bound == "probabilistic":
        raise ValueError("bound: found probabilistic, expected deterministic for bfloat16 on CUDA: "
                         "tensor cores cut off, so that errors have a bias")  # fmt: skip
    return TRUNCATION


def _off(ratio: Tensor) -> tuple[int, ...]:
    # Written so that NaN is off.
    return tuple(torch.nonzero(~(ratio <= 1)).flatten().tolist())


def _check(left_MK: Tensor, right_KN: Tensor) -> None:
    if left_MK.ndim != 2 or right_KN.ndim != 2 or left_MK.shape[1] != right_KN.shape[0]:
        raise ValueError(f"found shapes {tuple(left_MK.shape)} and {tuple(right_KN.shape)}, "
                         "expected M x K and K x N")  # fmt: skip
    if left_MK.dtype != right_KN.dtype or left_MK.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"found {left_MK.dtype} and {right_KN.dtype}, expected float32 or "
                         "bfloat16 on both sides")  # fmt: skip
    if left_MK.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        raise ValueError(
            f"float32_matmul_precision: found {torch.get_float32_matmul_precision()}, expected "
            "highest: the bound is for products in float32"
        )
