"""Scaled quantisation: its laws, and the same computed value by value in exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from harness.numerics.formats import BFLOAT16, E4M3, E5M2, E5M6, binade, round_to_format
from harness.numerics.logfmt import round_to_logfmt
from harness.numerics.scaling import dequantize, fake_quantize, quantize, round_in_tiles

BLOCK = 4
GRANULARITIES = ["tensor", "row", "tile", "block"]
FORMATS = st.sampled_from([E4M3, E5M2, E5M6])
GRANULARITY = st.sampled_from(GRANULARITIES)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def matrices(draw) -> Tensor:
    """Matrices of values from 2^-60 to 2^40, with zeros, ties and repeated values."""
    small = 2.0**-20
    element = st.builds(
        lambda mantissa, exponent: mantissa * 2.0**exponent,
        st.one_of(st.integers(-20, 20), st.floats(small, 1), st.floats(-1, -small)),
        st.sampled_from([-40, -10, -3, 0, 0, 0, 3, 10, 36]),
    )
    values = draw(arrays(np.float32, draw(SHAPES), elements=element.map(np.float32)))
    return torch.from_numpy(values)


def group_of(row: int, column: int, granularity: str) -> tuple[int, int]:
    return {"tensor": (0, 0), "row": (row, 0), "tile": (row, column // BLOCK),
            "block": (row // BLOCK, column // BLOCK)}[granularity]  # fmt: skip


def maxima(x: Tensor, granularity: str) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], float] = {}
    for (row, column), value in np.ndenumerate(x.abs().numpy()):
        key = group_of(row, column, granularity)
        found[key] = max(found.get(key, 0.0), float(value))
    return found


@given(matrices(), FORMATS, GRANULARITY)
def test_scales_map_each_groups_largest_value_onto_the_formats(x, format, granularity):
    quantized = quantize(x, format, granularity, BLOCK)
    wanted = maxima(x, granularity)
    rows, columns = (max(key[axis] for key in wanted) + 1 for axis in (0, 1))
    assert quantized.scales.shape == (rows, columns)
    assert quantized.scales.dtype == torch.float32
    for key, amax in wanted.items():
        scale = amax / format.max if amax else 1.0
        assert quantized.scales[key].item() == np.float32(scale)


@given(matrices(), FORMATS, GRANULARITY)
def test_powers_of_two_are_rounded_up(x, format, granularity):
    scales = quantize(x, format, granularity, BLOCK, power_of_two=True).scales
    for key, amax in maxima(x, granularity).items():
        scale = Fraction(scales[key].item())
        assert scale.numerator == 1 or scale.denominator == 1
        assert np.log2(float(scale)).is_integer()
        largest = Fraction(format.max)
        if amax:
            assert Fraction(amax) <= scale * largest < 2 * Fraction(amax)
        else:
            assert scale == 1


@given(matrices(), FORMATS, GRANULARITY, st.booleans())
def test_the_error_is_at_most_half_the_formats_spacing(x, format, granularity, power_of_two):
    quantized = quantize(x, format, granularity, BLOCK, power_of_two=power_of_two)
    found = dequantize(quantized)
    for (row, column), value in np.ndenumerate(x.numpy()):
        scale = quantized.scales[group_of(row, column, granularity)].double()
        ratio = torch.tensor(float(value)).double() / scale
        spacing = binade(ratio).clamp_min(format.smallest_normal) * 2.0**-format.mantissa_bits
        error = abs(found[row, column].item() - float(value))
        # Scales and products round to float32 as well.
        assert error <= (spacing / 2 * scale).item() + 2.0**-22 * abs(float(value))


@given(matrices(), FORMATS, GRANULARITY, st.integers(-30, 30), st.booleans())
def test_a_power_of_two_goes_through_exactly(x, format, granularity, exponent, power_of_two):
    factor = 2.0**exponent
    one = quantize(x, format, granularity, BLOCK, power_of_two=power_of_two)
    other = quantize(x * factor, format, granularity, BLOCK, power_of_two=power_of_two)
    assert torch.equal(one.values.float(), other.values.float())
    nonzero = torch.tensor([[maxima(x, granularity)[row, column] > 0
                             for column in range(one.scales.shape[1])]
                            for row in range(one.scales.shape[0])])  # fmt: skip
    assert torch.equal(one.scales[nonzero] * factor, other.scales[nonzero])


@given(matrices(), FORMATS, GRANULARITY, st.booleans())
def test_quantising_again_changes_nothing(x, format, granularity, power_of_two):
    once = fake_quantize(x, format, granularity, BLOCK, power_of_two=power_of_two)
    again = fake_quantize(once, format, granularity, BLOCK, power_of_two=power_of_two)
    # The largest value times its scale may be rounded; powers of two are exact.
    torch.testing.assert_close(again, once, rtol=0 if power_of_two else 2.0**-22, atol=0)


@given(matrices(), FORMATS, st.booleans())
def test_order_sign_zeros_and_the_largest_value_are_kept(x, format, power_of_two):
    found = fake_quantize(x, format, "tensor", power_of_two=power_of_two)
    order = x.flatten().argsort()
    assert (found.flatten()[order].diff() >= 0).all()
    assert torch.equal(fake_quantize(-x, format, "tensor", power_of_two=power_of_two), -found)
    if not power_of_two:
        # The largest value is the format's largest times the scale, up to float32 rounding.
        torch.testing.assert_close(found.abs().max(), x.abs().max(), rtol=2.0**-22, atol=0)
    assert (found[x == 0] == 0).all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("format", [E4M3, E5M2])
def test_values_come_in_the_type_that_products_take(format, granularity):
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    quantized = quantize(x, format, granularity, BLOCK)
    assert quantized.values.dtype == format.dtype
    assert quantized.values.shape == x.shape
    assert quantized.values.is_contiguous()
    # By hand: each scale on its group.
    scales = torch.tensor([[quantized.scales[group_of(row, column, granularity)]
                            for column in range(10)] for row in range(6)])  # fmt: skip
    assert torch.equal(quantized.values.float(), round_to_format(x / scales, format))
    assert torch.equal(dequantize(quantized), quantized.values.float() * scales)
    assert torch.equal(fake_quantize(x, format, granularity, BLOCK), dequantize(quantized))


def test_formats_without_a_torch_type_keep_float32():
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    quantized = quantize(x.bfloat16(), E5M6, "tile", BLOCK, power_of_two=True)
    assert quantized.values.dtype == torch.float32
    assert torch.equal(round_to_format(quantized.values, E5M6), quantized.values)


def test_zero_and_tiny_and_empty_matrices():
    for granularity in GRANULARITIES:
        zero = quantize(torch.zeros(5, 6), E4M3, granularity, BLOCK)
        assert (zero.scales == 1).all()
        assert (dequantize(zero) == 0).all()
        empty = quantize(torch.zeros(0, 6), E4M3, granularity, BLOCK)
        assert dequantize(empty).shape == (0, 6)
    tiny = torch.tensor([[1e-45, 1e-41, 2e-38]])
    for power_of_two in (False, True):
        found = fake_quantize(tiny, E4M3, "tensor", power_of_two=power_of_two)
        # Scales stay normal numbers; only what is below the format's smallest value is lost.
        limit = torch.maximum(tiny / 16, torch.tensor(2.0**-126 * E4M3.smallest_subnormal / 2))
        assert ((found - tiny).abs() <= limit).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_what_is_not_finite_spoils_its_group_visibly(bad, power_of_two):
    x = torch.ones(2, 8)
    x[0, 1] = bad
    found = fake_quantize(x, E4M3, "tile", BLOCK, power_of_two=power_of_two)
    assert found[0, :4].isnan().all()
    assert torch.equal(found[0, 4:], x[0, 4:])
    assert torch.equal(found[1], x[1])


def test_leading_dimensions_are_rows_and_the_type_is_kept():
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    for granularity in GRANULARITIES:
        found = fake_quantize(x, E4M3, granularity, BLOCK)
        flat = dequantize(quantize(x.view(6, 8), E4M3, granularity, BLOCK))
        assert torch.equal(found, flat.bfloat16().view(2, 3, 8))


def test_there_is_no_gradient():
    x = torch.randn(4, 8, requires_grad=True)
    assert not fake_quantize(x, E4M3, "tile", BLOCK).requires_grad


def test_named_formats_in_tiles():
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for name, wanted in {
        "e4m3": fake_quantize(x, E4M3, "tile", BLOCK),
        "e5m2": fake_quantize(x, E5M2, "tile", BLOCK),
        "e5m6": fake_quantize(x, E5M6, "tile", BLOCK),
        "bfloat16": round_to_format(x, BFLOAT16),
        "logfmt8": round_to_logfmt(x, 8, BLOCK),
        "logfmt10": round_to_logfmt(x, 10, BLOCK),
    }.items():
        assert torch.equal(round_in_tiles(x, name, BLOCK), wanted)


def test_what_is_not_a_matrix_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\), expected a matrix"):
        quantize(torch.zeros(2, 3, 4), E4M3, "row")
    with pytest.raises(ValueError, match="a block of 0"):
        quantize(torch.zeros(2, 3), E4M3, "tile", 0)
