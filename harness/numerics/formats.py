"""Low-precision floating-point formats, emulated by rounding values of a wider type.

A format has one sign bit, an exponent with the usual bias and a mantissa, and keeps subnormals.
Rounding is to nearest, ties to even. Nothing here has a gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# The exponent field of the types that rounding is computed in, and the integer of their width.
_EXPONENT = {
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
}


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format with a bias of 2^(exponent_bits - 1) - 1.

    Attributes:
        exponent_bits: At least 2.
        mantissa_bits: Stored fraction bits, without the hidden one; at least 1.
        finite_only: No infinities, and NaN only where all bits but the sign are set (the ``fn``
            types of the OCP 8-bit specification). Otherwise the top exponent is for infinity and
            NaN, as in IEEE 754.
        dtype: torch's type of the same values, if it has one.

    Raises:
        ValueError: If there are too few bits.
    """

    exponent_bits: int
    mantissa_bits: int
    finite_only: bool = False
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.exponent_bits < 2 or self.mantissa_bits < 1:
            raise ValueError(
                f"found {self.exponent_bits} exponent and {self.mantissa_bits} mantissa bits, "
                "expected at least 2 and 1"
            )

    @property
    def bits(self) -> int:
        """Width of a stored value."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest power of two."""
        bias = 2 ** (self.exponent_bits - 1) - 1
        return bias + 1 if self.finite_only else bias

    @property
    def max(self) -> float:
        """The largest finite value."""
        # The all-ones mantissa of the top exponent is NaN in a finite-only format.
        steps = 2 if self.finite_only else 1
        return 2.0**self.max_exponent * (2 - steps * 2.0**-self.mantissa_bits)

    @property
    def smallest_normal(self) -> float:
        """The smallest positive value with all mantissa bits to choose from."""
        return 2.0 ** (2 - 2 ** (self.exponent_bits - 1))

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive value."""
        return self.smallest_normal * 2.0**-self.mantissa_bits


E4M3 = FloatFormat(4, 3, finite_only=True, dtype=torch.float8_e4m3fn)
E5M2 = FloatFormat(5, 2, dtype=torch.float8_e5m2)
# DeepSeek-V3 (section 3.3.3) names the fields of this 12-bit format only. Taken like E5M2, with
# infinity and NaN: largest value 65024.
E5M6 = FloatFormat(5, 6)
BFLOAT16 = FloatFormat(8, 7, dtype=torch.bfloat16)

FORMATS = {"e4m3": E4M3, "e5m2": E5M2, "e5m6": E5M6, "bfloat16": BFLOAT16}


@torch.no_grad()
def round_to_format(x: Tensor, format: FloatFormat) -> Tensor:
    """Return the values of ``format`` nearest to ``x``, in the shape and type of ``x``.

    What lies beyond the largest value, infinity too, becomes that value, as training recipes do.
    NaN stays NaN, and a zero keeps its sign.

    Args:
        x: Of a floating-point type that holds every value of ``format``.
        format: What to round to.

    Raises:
        ValueError: If the type of ``x`` does not hold every value of ``format``.
    """
    _check_fits(x.dtype, format)
    # torch casts float64 by way of float32, which would round twice.
    if format.dtype is not None and x.dtype != torch.float64:
        return cast(x, format).to(x.dtype)
    wide = x if x.dtype in _EXPONENT else x.float()
    return _round(wide.clamp(-format.max, format.max), format).to(x.dtype)


@torch.no_grad()
def cast(x: Tensor, format: FloatFormat) -> Tensor:
    """Return ``x`` rounded likewise as the format's own torch type, or its own type without one.

    Args:
        x: Of a floating-point type narrower than float64.
        format: What to round to.
    """
    if format.dtype is None:
        return round_to_format(x, format)
    # Whether torch's casts saturate differs by type and version.
    return x.clamp(-format.max, format.max).to(format.dtype)


def binade(x: Tensor) -> Tensor:
    """Return the largest power of two not above |x|, or 0 below the normal values of its type.

    Args:
        x: Float32 or float64. Infinity and NaN give infinity.
    """
    integer, exponent_mask = _EXPONENT[x.dtype]
    return (x.view(integer) & exponent_mask).view(x.dtype)


def _round(x: Tensor, format: FloatFormat) -> Tensor:
    """Return float32 or float64 ``x``, within the limits, rounded to multiples of the spacing."""
    # Subnormals share the spacing of the smallest normal values.
    spacing = binade(x).clamp_(format.smallest_normal, 2.0**format.max_exponent)
    spacing *= 2.0**-format.mantissa_bits
    # Scaling by powers of two is exact, and torch rounds ties to even.
    return torch.round(x / spacing).mul_(spacing)


def _check_fits(dtype: torch.dtype, format: FloatFormat) -> None:
    limits = torch.finfo(dtype)
    fits = (
        limits.eps <= 2.0**-format.mantissa_bits
        and limits.max >= format.max
        and limits.tiny * limits.eps <= format.smallest_subnormal
    )
    if not fits:
        raise ValueError(
            f"found {dtype}, expected a type that holds all values of a format with "
            f"{format.exponent_bits} exponent and {format.mantissa_bits} mantissa bits"
        )
