"""Bit flips in a checksummed matrix product: which are noticed, and what those overlooked do.

Legend of shape suffixes: M rows, K inner, N columns.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from harness.numerics.bit_flips import bit_names, flip_bit_
from harness.numerics.checksummed import Bound, Checksums, correct, encode, product, verify

# Where a bit flips: in a factor after its checksums were taken, in the sum of the first half of
# the products, or in the finished product.
Target = Literal["input", "accumulator", "output"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class Factors:
    """Two factors, their checksums, and their product as it should be."""

    left_MK: Tensor
    right_KN: Tensor
    checksums: Checksums
    product_MN: Tensor

    @classmethod
    def of(cls, left_MK: Tensor, right_KN: Tensor) -> "Factors":
        """Multiply two factors without a fault."""
        return cls(left_MK, right_KN, encode(left_MK, right_KN), product(left_MK, right_KN))


@dataclass(frozen=True)
class Flip:
    """One bit flip and what became of it.

    Attributes:
        target: Where.
        bit: Which, of ``bit_names``.
        change: Frobenius norm of the change of the product over that of the product; infinite if
            an entry is no longer finite.
        detected: Whether some sum was off, by bound.
        located: Whether the sums single out the entry that changed, by bound.
        left_over: ``change`` after the correction, by bound; only where located.
    """

    target: Target
    bit: str
    change: float
    detected: dict[Bound, bool]
    located: dict[Bound, bool]
    left_over: dict[Bound, float]


def flips(
    factors: Factors, bounds: Sequence[Bound], per_bit: int, random: np.random.Generator
) -> Iterator[Flip]:
    """Yield ``per_bit`` flips of every bit of every target, each at a random place.

    The product of flipped inputs is the machine's; an accumulator is the sum of the first half of
    the products, and as wide as the output.
    """
    half = _first_half(factors)
    for target in TARGETS:
        words = factors.left_MK if target == "input" else factors.product_MN
        for bit in bit_names(words.dtype):
            for index in random.integers(words.numel(), size=per_bit):
                yield _flip(factors, half, target, bit, int(index), bounds)


def _first_half(factors: Factors) -> tuple[Tensor, Tensor]:
    """Return the sums over the first half of the inner dimension, and over the rest."""
    middle = factors.left_MK.shape[1] // 2
    return (
        product(factors.left_MK[:, :middle], factors.right_KN[:middle]),
        product(factors.left_MK[:, middle:], factors.right_KN[middle:]),
    )


def _flip(
    factors: Factors,
    half: tuple[Tensor, Tensor],
    target: Target,
    bit: str,
    index: int,
    bounds: Sequence[Bound],
) -> Flip:
    left_MK, right_KN = factors.left_MK, factors.right_KN
    if target == "input":
        left_MK = left_MK.clone()
        flip_bit_(left_MK, index, bit)
        clean_MN, found_MN = factors.product_MN, product(left_MK, right_KN)
    elif target == "accumulator":
        clean_MN, sums_MN = half[0] + half[1], half[0].clone()
        flip_bit_(sums_MN, index, bit)
        found_MN = sums_MN + half[1]
    else:
        clean_MN, found_MN = factors.product_MN, factors.product_MN.clone()
        flip_bit_(found_MN, index, bit)
    verdicts = {
        bound: verify(left_MK, right_KN, found_MN, factors.checksums, bound) for bound in bounds
    }
    place = divmod(index, clean_MN.shape[1])
    located = {
        bound: target != "input" and verdict.place == place for bound, verdict in verdicts.items()
    }
    return Flip(
        target,
        bit,
        relative_change(found_MN, clean_MN),
        {bound: not verdict.is_clean for bound, verdict in verdicts.items()},
        located,
        {
            bound: relative_change(correct(found_MN, verdicts[bound]), clean_MN)
            for bound, is_located in located.items()
            if is_located
        },
    )


def relative_change(found_MN: Tensor, clean_MN: Tensor) -> float:
    """Return the Frobenius norm of the change over that of the clean product."""
    clean = clean_MN.double()
    change = ((found_MN.double() - clean).norm() / clean.norm()).item()
    return change if math.isfinite(change) else math.inf


def clean_margin(factors: Factors, bound: Bound) -> float:
    """Return the largest difference of a correct product's sums over what the bound allows."""
    return verify(
        factors.left_MK, factors.right_KN, factors.product_MN, factors.checksums, bound
    ).largest
