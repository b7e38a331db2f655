"""Dot products as FP8 tensor cores with few accumulator bits compute them.

On Hopper, the products of 32 element pairs and the accumulator are shifted to the largest of their
exponents, cut off after 13 fraction bits and added; the register keeps 13 fraction bits as well
(arXiv 2505.09343, section 3.1.2; DeepSeek-V3, section 3.3.2). The remedy adds the register to a
float32 sum every 128 elements and starts it anew. The exponent of a term is that of its value, and
what is cut off is cut off towards zero.

Everything runs in float64, which holds all intermediate values exactly.

Legend of shape suffixes: D dot products, K their elements, P partial sums, N elements of one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.numerics.formats import binade


@dataclass(frozen=True)
class Accumulator:
    """How a tensor core adds products.

    Attributes:
        fraction_bits: Kept below the leading bit of the largest term: 1 to 40.
        align: Products that are added at once.
        promotion: Elements after which the register moves to a float32 sum, a multiple of
            ``align``; none: never.

    Raises:
        ValueError: If a number is not as described.
    """

    fraction_bits: int = 13
    align: int = 32
    promotion: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.fraction_bits <= 40:
            raise ValueError(f"found {self.fraction_bits} fraction_bits, expected 1 to 40")
        if self.align < 1:
            raise ValueError(f"found align {self.align}, expected at least 1")
        if self.promotion is not None and (self.promotion < 1 or self.promotion % self.align):
            raise ValueError(
                f"found promotion {self.promotion}, expected a multiple of align {self.align}"
            )


def accumulate(products_DK: Tensor, accumulator: Accumulator) -> Tensor:
    """Return the sum of each row of ``products_DK`` as ``accumulator`` computes it, in float64.

    Args:
        products_DK: Exact products of the operands as the tensor core sees them. Scales are applied
            to its result, so they are no part of the products.
        accumulator: The hardware.
    """
    dots, length = products_DK.shape
    part = accumulator.promotion or max(length, 1)
    parts = max(-(-length // part), 1)
    # Zeros change neither exponents nor sums.
    padded = F.pad(products_DK.double(), (0, parts * part - length))
    registers_DP = _register(padded.view(dots * parts, part), accumulator).view(dots, parts)
    if accumulator.promotion is None:
        return registers_DP.squeeze(1)
    total_D = torch.zeros(dots, device=products_DK.device)
    for register_D in registers_DP.unbind(1):
        total_D += register_D.float()
    return total_D.double()


def _register(products_PN: Tensor, accumulator: Accumulator) -> Tensor:
    register_P1 = products_PN.new_zeros(len(products_PN), 1)
    for group in products_PN.split(accumulator.align, dim=1):
        terms = torch.cat([register_P1, group], dim=1)
        largest = terms.abs().amax(1, keepdim=True)
        kept = _truncate(terms, largest, accumulator.fraction_bits).sum(1, keepdim=True)
        register_P1 = _truncate(kept, kept, accumulator.fraction_bits)
    return register_P1.squeeze(1)


def _truncate(x: Tensor, largest: Tensor, fraction_bits: int) -> Tensor:
    """Return ``x`` towards zero to ``fraction_bits`` below the leading bit of ``largest``."""
    spacing = binade(largest).clamp_min(torch.finfo(largest.dtype).tiny) * 2.0**-fraction_bits
    return torch.trunc(x / spacing) * spacing


def sum_errors(found_D: Tensor, exact_D: Tensor) -> dict[str, float]:
    """Return largest error, Frobenius error and bias of sums, each relative to the exact ones."""
    error_D = found_D - exact_D
    return {
        "max_error": (error_D.abs().max() / exact_D.abs().max()).item(),
        "frobenius_error": (error_D.norm() / exact_D.norm()).item(),
        "bias": ((error_D * exact_D.sign()).sum() / exact_D.abs().sum()).item(),
    }
