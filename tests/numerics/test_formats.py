"""Formats against torch's and ml_dtypes' types bit by bit, and against exact fractions."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.numerics.formats import BFLOAT16, E4M3, E5M2, E5M6, FloatFormat, binade, cast
from harness.numerics.formats import round_to_format as rounded

# The same values by bit arithmetic alone, without torch's type.
GENERAL_E4M3 = FloatFormat(4, 3, finite_only=True)
GENERAL_E5M2 = FloatFormat(5, 2)
FLOAT16 = FloatFormat(5, 10)
GENERAL_BFLOAT16 = FloatFormat(8, 7)
MINI = FloatFormat(3, 2)


def patterns(bits: Tensor, dtype: torch.dtype) -> Tensor:
    return bits.to(torch.int16).view(dtype)


def all_float16() -> Tensor:
    """Every pattern of float16, NaN and infinities too, as float32."""
    return patterns(torch.arange(-(2**15), 2**15), torch.float16).float()


def dense(format: FloatFormat) -> Tensor:
    """Float32 values that are hard to round: ties and their neighbours, and all magnitudes."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=generator)
    anything = uniform.to(torch.int32).view(torch.float32)
    spread = torch.randn(200_000, generator=generator) * format.max
    spread *= torch.exp2(-torch.rand(200_000, generator=generator) * 2**format.exponent_bits)
    low = torch.rand(50_000, generator=generator) * 4 * format.smallest_normal
    exact = FloatFormat(format.exponent_bits, format.mantissa_bits + 1)
    ties = rounded(torch.cat([spread, low]), exact)
    ties = torch.cat([ties, torch.tensor([format.max, 2.0**format.max_exponent * 2])])
    edges = [ties, torch.nextafter(ties, ties.new_tensor(torch.inf)),
             torch.nextafter(ties, ties.new_tensor(-torch.inf))]  # fmt: skip
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])
    return torch.cat([anything, spread, low, *edges, special])


def saturated(x: Tensor, format: FloatFormat) -> Tensor:
    return x.clamp(-format.max, format.max)


def assert_same(found: Tensor, wanted: Tensor) -> None:
    """The same values, zeros of the same sign, NaN in the same places."""
    assert found.dtype == wanted.dtype
    assert torch.equal(found.isnan(), wanted.isnan())
    numbers = ~wanted.isnan()
    assert torch.equal(found[numbers], wanted[numbers])
    assert torch.equal(found[numbers].signbit(), wanted[numbers].signbit())


@pytest.mark.parametrize(
    ("format", "bits", "largest", "normal", "subnormal"),
    [
        (E4M3, 8, 448, 2**-6, 2**-9),
        (E5M2, 8, 57344, 2**-14, 2**-16),
        (E5M6, 12, 65024, 2**-14, 2**-20),
        (FLOAT16, 16, 65504, 2**-14, 2**-24),
        (BFLOAT16, 16, 3.3895313892515355e38, 2**-126, 2**-133),
    ],
)
def test_limits_are_the_published_ones(format, bits, largest, normal, subnormal):
    assert format.bits == bits
    assert (format.max, format.smallest_normal, format.smallest_subnormal) == (
        largest, normal, subnormal
    )  # fmt: skip
    if format.dtype is not None:
        limits = torch.finfo(format.dtype)
        assert (limits.bits, limits.max, limits.tiny) == (bits, largest, normal)


TORCH = [
    (GENERAL_E4M3, torch.float8_e4m3fn),
    (GENERAL_E5M2, torch.float8_e5m2),
    (FLOAT16, torch.float16),
    (GENERAL_BFLOAT16, torch.bfloat16),
]


@pytest.mark.parametrize(("format", "dtype"), TORCH)
def test_values_are_those_of_torchs_types(format, dtype):
    for x in (all_float16(), dense(format)):
        assert_same(rounded(x, format), saturated(x, format).to(dtype).float())


@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        (E4M3, ml_dtypes.float8_e4m3fn),
        (GENERAL_E4M3, ml_dtypes.float8_e4m3fn),
        (FloatFormat(4, 3), ml_dtypes.float8_e4m3),
        (FloatFormat(3, 4), ml_dtypes.float8_e3m4),
        (E5M2, ml_dtypes.float8_e5m2),
        (GENERAL_E5M2, ml_dtypes.float8_e5m2),
        (BFLOAT16, ml_dtypes.bfloat16),
        (GENERAL_BFLOAT16, ml_dtypes.bfloat16),
    ],
)
def test_values_are_those_of_ml_dtypes(format, dtype):
    for x in (all_float16(), dense(format)):
        with np.errstate(all="ignore"):
            narrow = saturated(x, format).numpy().astype(dtype)
        assert_same(rounded(x, format), torch.from_numpy(narrow.astype(np.float32)))


def exactly_nearest(x: float, format: FloatFormat) -> float:
    """Saturating rounding in integers: the even one of equally near multiples of the spacing."""
    value = abs(Fraction(x))
    spacing = Fraction(format.smallest_subnormal)
    while value >= spacing * 2 ** (format.mantissa_bits + 1):
        spacing *= 2
    # Python's round() of a fraction takes the even neighbour of a tie.
    nearest = min(round(value / spacing) * spacing, Fraction(format.max))
    return float(nearest) * (-1 if x < 0 else 1)


@pytest.mark.parametrize("format", [E5M6, E4M3, MINI])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_the_nearest_in_exact_arithmetic(format, dtype):
    x = dense(format)
    x = x[x.isfinite() & (x.abs() < 4 * format.max) & (x.abs() > format.smallest_subnormal / 8)]
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:4000]].to(dtype)
    wanted = [exactly_nearest(value, format) for value in x.tolist()]
    assert rounded(x, format).tolist() == wanted


def test_every_value_of_e5m6_stays_and_every_midpoint_goes_to_the_even_one():
    values = np.array(sorted({
        sign * np.ldexp(mantissa if exponent == -14 else 64 + mantissa, exponent - 6)
        for sign in (-1, 1) for exponent in range(-14, 16) for mantissa in range(64)
    } | {np.ldexp(64 + m, -20) for m in range(64)}))  # fmt: skip
    x = torch.from_numpy(values).float()
    assert x.max().item() == E5M6.max
    assert torch.equal(rounded(x, E5M6), x)
    found = rounded((x[1:] + x[:-1]) / 2, E5M6)
    last_bit = [exactly_nearest(value, E5M6) for value in ((x[1:] + x[:-1]) / 2).tolist()]
    assert found.tolist() == last_bit


def test_float64_is_rounded_once():
    """Torch's own cast goes by way of float32 and takes what lies above a tie for the tie."""
    above = torch.tensor([1 + 2.0**-4 + 2.0**-40], dtype=torch.float64)
    assert rounded(above, E4M3).item() == 1.125
    assert above.to(torch.float8_e4m3fn).double().item() == 1.0


@pytest.mark.parametrize("format", [E4M3, E5M2, E5M6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_give_the_same_values(format, dtype):
    x = all_float16()
    x = x[x.isfinite()].to(dtype)
    found = rounded(x, format)
    assert found.dtype == dtype
    assert torch.equal(found.double(), rounded(x.double(), format))


def test_types_that_do_not_hold_the_format_are_refused():
    for dtype, format in ((torch.float16, BFLOAT16), (torch.bfloat16, FLOAT16)):
        with pytest.raises(ValueError, match="expected a type that holds all values"):
            rounded(torch.ones(1, dtype=dtype), format)
    with pytest.raises(ValueError, match="expected at least 2 and 1"):
        FloatFormat(1, 3)


def test_a_cast_is_torchs_type_where_there_is_one():
    x = torch.tensor([1000.0, -1000.0, 0.3])
    assert cast(x, E4M3).dtype == torch.float8_e4m3fn
    assert torch.equal(cast(x, E4M3).float(), rounded(x, E4M3))
    assert torch.equal(cast(x, E5M6), rounded(x, E5M6))


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
ANY = st.sampled_from([E4M3, E5M2, E5M6, GENERAL_BFLOAT16, MINI])


@given(FINITE, FINITE, ANY)
def test_rounding_is_monotone_odd_and_idempotent(first, second, format):
    low, high = sorted((first, second))
    x = torch.tensor([low, high])
    found = rounded(x, format)
    assert found[0] <= found[1]
    assert torch.equal(rounded(-x, format), -found)
    assert torch.equal(rounded(found, format), found)


@given(FINITE, ANY)
def test_the_error_is_at_most_half_the_spacing(value, format):
    x = torch.tensor([value], dtype=torch.float64).clamp(-format.max, format.max)
    spacing = binade(x).clamp_min(format.smallest_normal) * 2.0**-format.mantissa_bits
    assert (rounded(x, format) - x).abs() <= spacing / 2


def test_strided_and_empty_tensors():
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    for format in (E4M3, E5M6):
        assert torch.equal(rounded(x.T, format), rounded(x, format).T)
        assert rounded(x[:0], format).shape == (0, 10)
