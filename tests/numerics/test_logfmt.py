"""LogFMT against all of its codes written out in float64, and its laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from harness.numerics.logfmt import LOG_RANGE, decode, encode, round_to_logfmt

TILE = 8
BITS = st.sampled_from([3, 4, 6, 8, 10, 12])


@st.composite
def tiles(draw) -> Tensor:
    """Float64 rows of a tile: any span, zeros, equal magnitudes."""
    element = st.builds(
        lambda mantissa, exponent: mantissa * 2.0**exponent,
        st.one_of(st.just(0.0), st.floats(0.5, 1), st.floats(-1, -0.5)),
        st.integers(-45, 3),
    )
    values = draw(arrays(np.float64, (draw(st.integers(1, 3)), TILE), elements=element))
    return torch.from_numpy(values)


def values_of(row: Tensor, bits: int) -> np.ndarray:
    """All magnitudes of one tile by the published rule, code 0 first."""
    magnitudes = row.abs()[row != 0].numpy()
    if magnitudes.size == 0:
        return np.zeros(1)
    high = math.log(magnitudes.max())
    low = max(math.log(magnitudes.min()), high - math.log(2.0**32))
    step = (high - low) / (2 ** (bits - 1) - 2)
    codes = np.arange(1, 2 ** (bits - 1))
    return np.concatenate([[0.0], np.exp(low + step * (codes - 1))])


@given(tiles(), BITS)
def test_every_magnitude_goes_to_the_nearest_of_all_values(x, bits):
    """The constant offset in logarithms chooses as comparing distances does."""
    found = round_to_logfmt(x, bits, TILE)
    for row, rounded in zip(x, found, strict=True):
        values = values_of(row, bits)
        distance = np.abs(values[:, None] - row.abs().numpy()).min(0)
        np.testing.assert_allclose(
            (rounded.abs() - row.abs()).abs().numpy(), distance, rtol=0, atol=1e-12 * values.max()
        )
        assert torch.equal(rounded.signbit(), row.signbit())


@given(tiles(), BITS)
def test_logarithms_go_to_the_nearest_code(x, bits):
    found = round_to_logfmt(x, bits, TILE, "logarithmic")
    for row, rounded in zip(x, found, strict=True):
        values = values_of(row, bits)[1:]
        inside = row.abs() >= (values.min() if values.size else np.inf)
        logs = row[inside].abs().log().numpy()
        distance = np.abs(np.log(values)[:, None] - logs).min(0) if values.size else logs
        np.testing.assert_allclose(
            abs(rounded[inside].abs().log().numpy() - logs), distance, rtol=0, atol=1e-11
        )


@given(tiles(), BITS)
def test_codes_decode_to_what_rounding_returns(x, bits):
    encoded = encode(x, bits, TILE)
    assert encoded.codes.shape == x.shape
    assert encoded.codes.dtype == (torch.uint8 if bits <= 8 else torch.int16)
    assert encoded.largest.shape == encoded.step.shape == (len(x), 1)
    assert torch.equal(decode(encoded, torch.float64), round_to_logfmt(x, bits, TILE))


@given(tiles(), BITS)
def test_the_extremes_have_the_first_and_the_last_code(x, bits):
    codes = encode(x, bits, TILE).codes.long()
    sign, top = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    for row, code in zip(x, codes, strict=True):
        assert torch.equal(code >= sign, row.signbit())
        magnitude = row.abs()
        assert (code[row == 0] % sign == 0).all()
        if magnitude.max() == 0:
            continue
        assert (code[magnitude == magnitude.max()] % sign == top).all()
        smallest = magnitude[row != 0].min()
        if 2.0**-32 * magnitude.max() <= smallest < magnitude.max():
            assert (code[magnitude == smallest] % sign == 1).all()


@given(tiles(), BITS)
def test_rounding_is_monotone_and_idempotent(x, bits):
    found = round_to_logfmt(x, bits, TILE)
    for row, rounded in zip(x, found, strict=True):
        assert (rounded[row.argsort()].diff() >= 0).all()
    # Once values too small for the range are gone, the range is another.
    far = ((x != 0) & (x.abs() < 2.0**-32 * x.abs().amax(1, keepdim=True))).any(1)
    again = round_to_logfmt(found, bits, TILE)
    torch.testing.assert_close(again[~far], found[~far], rtol=1e-12, atol=0)


@given(tiles(), BITS, st.integers(-20, 20))
def test_codes_do_not_change_with_a_power_of_two(x, bits, exponent):
    assert torch.equal(encode(x, bits, TILE).codes, encode(x * 2.0**exponent, bits, TILE).codes)


@given(tiles())
def test_float32_takes_the_same_codes_but_for_ties(x):
    x = x.float()
    assume((x.abs() > 1e-30).any())
    one, other = (encode(kind, 8, TILE).codes.int() for kind in (x, x.double()))
    differs = one != other
    values = round_to_logfmt(x.double(), 8, TILE)
    gap = (round_to_logfmt(x, 8, TILE) - values).abs()
    error = (values - x.double()).abs()
    # Where codes differ, both neighbours are as near up to rounding.
    near = (gap - 2 * error).abs() <= 1e-4 * gap
    largest = x.abs().amax(1, keepdim=True)
    assert (~differs | near | (gap <= 1e-5 * largest)).all()


def test_tiles_without_a_range_are_exact():
    x = torch.tensor([
        [0.0, 0.0, 0.0, 0.0],
        [0.7, -0.7, 0.7, 0.7],
        [0.0, -1e-30, 0.0, 0.0],
        [3.1e38, 3.1e38, 0.0, -3.1e38],
    ])  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for bits in (3, 8, 10):
            assert torch.equal(round_to_logfmt(x.to(dtype), bits, 4), x.to(dtype))


def test_what_is_far_below_the_largest_is_the_smallest_code_or_zero():
    low = 2.0**-32
    x = torch.tensor([[1.0, 2 * low, 0.51 * low, 0.49 * low, 1e-30, -0.8 * low]])
    found = round_to_logfmt(x.double(), 8, 6)[0]
    step = LOG_RANGE / 126
    assert torch.log(found[1] / low) / step == pytest.approx(round(math.log(2) / step), abs=1e-9)
    np.testing.assert_allclose(found[2:], [low, 0, 0, -low], rtol=1e-9)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_its_tile_visibly(bad):
    x = torch.ones(1, 8)
    x[0, 1] = bad
    found = round_to_logfmt(x, 8, 4)
    assert found[0, :4].isnan().all()
    assert torch.equal(found[0, 4:], x[0, 4:])


def test_rounding_logarithms_enlarges_and_rounding_values_does_not():
    """With equal density, half the values between v and v e^s go to each in linear space.

    In log space those above v e^(s/2) go up: the mean grows by
    v (e^s - 1) ((e^s - e^(s/2)) / (e^s - 1) - 1/2).
    """
    bits, step = 6, LOG_RANGE / 30
    first, second = math.exp(-2 * step), math.exp(-step)
    between = torch.linspace(first, second, 20_003, dtype=torch.float64)[1:-1]
    ends = torch.tensor([1.0, 2.0**-32], dtype=torch.float64)
    x = torch.cat([between, ends]).view(1, -1)
    linear, logarithmic = (
        (round_to_logfmt(x, bits, x.shape[1], kind)[0, :-2] - between).mean().item()
        for kind in ("linear", "logarithmic")
    )
    gap = second - first
    expected = gap * ((second - math.sqrt(first * second)) / gap - 0.5)
    assert linear == pytest.approx(0, abs=1e-4 * gap)
    assert logarithmic == pytest.approx(expected, abs=1e-4 * gap)


def test_there_is_no_gradient_and_leading_dimensions_stay():
    x = torch.randn(2, 3, 16, requires_grad=True)
    found = round_to_logfmt(x.bfloat16(), 8, 8)
    assert (found.shape, found.dtype, found.requires_grad) == (x.shape, torch.bfloat16, False)
    assert encode(x, 8, 8).step.shape == (2, 3, 2)


@pytest.mark.parametrize(
    ("bits", "tile", "message"),
    [(2, 4, "3 to 15"), (16, 4, "3 to 15"), (8, 3, "3 does not divide")],
)
def test_impossible_codes_are_refused(bits, tile, message):
    with pytest.raises(ValueError, match=message):
        encode(torch.ones(1, 8), bits, tile)
