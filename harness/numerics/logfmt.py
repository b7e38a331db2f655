"""LogFMT-nBit: a sign and an equidistant code of log|x| between the extremes of each tile.

Of the 2^(n-1) codes of a tile, 0 is zero, 1 its smallest and 2^(n-1) - 1 its largest magnitude
(arXiv 2505.09343, section 3.2). Only the largest magnitude and the step between logarithms are
stored beside the codes. Nothing here has a gradient.

Legend of shape suffixes: T tiles, W values of a tile; 1 marks a dimension of one.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["linear", "logarithmic"]

# The smallest code lies no further than this below the largest: the range of a 5-bit exponent.
LOG_RANGE = 32 * math.log(2)
BITS = range(3, 16)


@dataclass(frozen=True)
class LogTiles:
    """An encoded tensor.

    Attributes:
        codes: Sign bit above n - 1 bits of magnitude, one integer per value, in the shape of the
            input: uint8 up to 8 bits, int16 beyond.
        largest: Largest magnitude per tile: ... x tiles.
        step: Distance of neighbouring codes in natural logarithms per tile: ... x tiles.
        bits: Sign and magnitude bits of a code.
    """

    codes: Tensor
    largest: Tensor
    step: Tensor
    bits: int


@torch.no_grad()
def encode(x: Tensor, bits: int, tile: int = 128, rounding: Rounding = "linear") -> LogTiles:
    """Return the codes of ``x`` (... x columns) in 1 x ``tile`` tiles.

    Magnitudes go to the code whose value is nearest (``linear``, the published rule, with the
    smallest error) or whose logarithm is (``logarithmic``). Of equal distances the larger code is
    taken. Over a smooth density and for steps s well below one, the mean magnitude changes by a
    share of -s^2 / 12 in linear and of s^2 / 24 in logarithmic rounding.

    Args:
        x: Of any floating-point type; finite.
        bits: Sign and magnitude bits: 3 to 15.
        tile: Neighbouring columns that share their range.
        rounding: What is nearest.

    Raises:
        ValueError: If ``bits`` is out of range or the columns are not whole tiles.
    """
    x_TW = _tiles(x, bits, tile)
    code_TW, largest_T1, step_T1 = _magnitude_codes(x_TW.abs(), bits, rounding)
    integer = torch.uint8 if bits <= 8 else torch.int16
    codes = (code_TW + x_TW.signbit() * 2 ** (bits - 1)).to(integer)
    return LogTiles(codes.view(x.shape), largest_T1.squeeze(-1), step_T1.squeeze(-1), bits)


@torch.no_grad()
def decode(tiles: LogTiles, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values of all codes, in the shape of the codes."""
    codes_TW = tiles.codes.view(*tiles.step.shape, -1)
    sign_bit = 2 ** (tiles.bits - 1)
    code_TW = (codes_TW % sign_bit).to(tiles.step.dtype)
    values_TW = _magnitudes(code_TW, tiles.largest[..., None], tiles.step[..., None], tiles.bits)
    signed_TW = torch.where(codes_TW >= sign_bit, -values_TW, values_TW)
    return signed_TW.view(tiles.codes.shape).to(dtype)


@torch.no_grad()
def round_to_logfmt(x: Tensor, bits: int, tile: int = 128, rounding: Rounding = "linear") -> Tensor:
    """Return ``decode(encode(x))`` in the type of ``x``, without packing codes.

    A tile with an infinity or NaN turns into NaN.
    """
    x_TW = _tiles(x, bits, tile)
    code_TW, largest_T1, step_T1 = _magnitude_codes(x_TW.abs(), bits, rounding)
    values_TW = _magnitudes(code_TW, largest_T1, step_T1, bits).copysign(x_TW)
    return values_TW.view(x.shape).to(x.dtype)


def _tiles(x: Tensor, bits: int, tile: int) -> Tensor:
    if bits not in BITS:
        raise ValueError(f"found {bits} bits, expected {BITS.start} to {BITS.stop - 1}")
    if tile < 1 or x.shape[-1] % tile:
        raise ValueError(f"tile {tile} does not divide the {x.shape[-1]} columns")
    wide = x if x.dtype == torch.float64 else x.float()
    return wide.reshape(*x.shape[:-1], x.shape[-1] // tile, tile)


def _magnitude_codes(
    magnitude_TW: Tensor, bits: int, rounding: Rounding
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes without sign, as floating-point numbers, and largest and step of each tile."""
    top = 2 ** (bits - 1) - 1
    largest_T1 = magnitude_TW.amax(-1, keepdim=True)
    ratio_TW = magnitude_TW / largest_T1
    # From the largest down, so that its own code is exact.
    log_TW = ratio_TW.log()
    lowest_T1 = log_TW.masked_fill(magnitude_TW == 0, 0).amin(-1, keepdim=True)
    lowest_T1 = lowest_T1.clamp_min(-LOG_RANGE)
    step_T1 = -lowest_T1 / (top - 1)
    # Without a range, all values have the top code.
    divisor_T1 = torch.where(step_T1 > 0, step_T1, 1)
    code_TW = torch.floor(log_TW / divisor_T1 + _round_up(divisor_T1, rounding)) + top
    # Below the smallest value: it or zero, whichever is nearer.
    kept_TW = ratio_TW >= lowest_T1.exp() / 2
    return torch.where(kept_TW, code_TW.clamp(1, top), 0), largest_T1, step_T1


def _round_up(step: Tensor, rounding: Rounding) -> Tensor | float:
    """Return what to add to log|x| / step so that its floor is the nearest code.

    The midpoint of the values v and v e^step lies log((1 + e^step) / 2) above log v, the same for
    all codes of a tile; DeepEP rounds by the same offset in base 2 (csrc/kernels/internode_ll.cu).
    """
    if rounding == "logarithmic":
        return 0.5
    return 1 - torch.log1p(torch.expm1(step) / 2) / step


def _magnitudes(code_TW: Tensor, largest_T1: Tensor, step_T1: Tensor, bits: int) -> Tensor:
    top = 2 ** (bits - 1) - 1
    values_TW = largest_T1 * torch.exp(step_T1 * (code_TW - top))
    # Times zero, so that what is not finite stays so.
    return values_TW * (code_TW > 0)
