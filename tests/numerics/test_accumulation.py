"""Accumulation against integers and fractions, against exact sums, and against published errors."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.numerics.accumulation import Accumulator, accumulate
from harness.numerics.formats import E4M3, round_to_format
from harness.numerics.scaling import fake_quantize, quantize

E4M3_VALUES = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
FINITE = E4M3_VALUES[E4M3_VALUES.isfinite()].tolist()


def leading_bit(value: Fraction) -> int:
    """Exponent of the largest power of two not above ``value`` > 0, by integers alone."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1


def towards_zero(value: Fraction, largest: Fraction, fraction_bits: int) -> Fraction:
    if largest == 0:
        return Fraction(0)
    spacing = Fraction(2) ** (leading_bit(largest) - fraction_bits)
    return int(value / spacing) * spacing


def slowly(products: list[Fraction], hardware: Accumulator) -> Fraction:
    """One dot product term by term."""
    bits, total, register = hardware.fraction_bits, np.float32(0), Fraction(0)
    for start in range(0, len(products), hardware.align):
        terms = [register, *products[start : start + hardware.align]]
        largest = max(abs(term) for term in terms)
        register = sum((towards_zero(term, largest, bits) for term in terms), Fraction(0))
        register = towards_zero(register, abs(register), bits)
        end = min(start + hardware.align, len(products))
        if hardware.promotion and (end % hardware.promotion == 0 or end == len(products)):
            total = np.float32(total + np.float32(float(register)))
            register = Fraction(0)
    return Fraction(float(total)) if hardware.promotion else register


@given(
    st.lists(st.tuples(st.sampled_from(FINITE), st.sampled_from(FINITE)), max_size=40),
    st.builds(
        lambda bits, align, groups: Accumulator(bits, align, groups and groups * align),
        st.sampled_from([1, 3, 8, 13, 24]),
        st.integers(1, 8),
        st.sampled_from([None, 1, 3]),
    ),
)
def test_sums_are_those_of_integer_arithmetic(pairs, hardware):
    products = torch.tensor([[a * b for a, b in pairs]], dtype=torch.float64)
    wanted = slowly([Fraction(a) * Fraction(b) for a, b in pairs], hardware)
    assert accumulate(products.view(1, -1), hardware).tolist() == [float(wanted)]


def test_one_group_by_hand():
    # The largest product is 2^3, so with 2 fraction bits terms are multiples of 2: -1.5 vanishes,
    # 3 becomes 2, and 8 + 2 + 6 = 16.
    products = torch.tensor([[8.0, 3.0, -1.5, 6.0]], dtype=torch.float64)
    assert accumulate(products, Accumulator(2, 4)).item() == 16
    # Two at a time: 8 + 2 = 10, which 2 bits still hold; then 10 - 0 + 6 = 16.
    assert accumulate(products, Accumulator(2, 2)).item() == 16
    # One fraction bit: multiples of 4. 8 + 0 = 8, then 8 - 0 + 4 = 12.
    assert accumulate(products, Accumulator(1, 2)).item() == 12
    # Of 13 bits below 2^13, ones are left and fractions are not.
    assert accumulate(torch.tensor([[2.0**13, 1.75, 0.75]]), Accumulator(13, 3)).item() == 2**13 + 1
    # The register has no bit for the one in 2^14 + 1, whose terms all had.
    assert accumulate(torch.tensor([[2.0**13, 2.0**13, 1.0]]), Accumulator(13, 3)).item() == 2**14


def test_a_register_that_is_wide_enough_is_exact():
    generator = torch.Generator().manual_seed(0)
    a, b = (round_to_format(torch.randn(50, 300, generator=generator), E4M3) for _ in "ab")
    exact = (a.double() * b.double()).sum(1)
    # E4M3 products are multiples of 2^-18, and these sums are below 2^10.
    assert torch.equal(accumulate(a.double() * b, Accumulator(28)), exact)
    promoted = accumulate(a.double() * b, Accumulator(28, promotion=96))
    torch.testing.assert_close(promoted, exact, rtol=1e-5, atol=1e-5)
    # Dense products: what was promoted is a sum in float32, part by part.
    dense = torch.rand(50, 300, generator=generator).double()
    parts = [part.sum(1).float() for part in dense.split(96, dim=1)]
    assert torch.equal(accumulate(dense, Accumulator(40, promotion=96)).float(), sum(parts))


def test_sums_of_a_power_of_two_and_of_the_opposite_signs_follow():
    generator = torch.Generator().manual_seed(0)
    products = torch.randn(20, 500, generator=generator, dtype=torch.float64)
    for hardware in (Accumulator(), Accumulator(promotion=128)):
        found = accumulate(products, hardware)
        assert torch.equal(accumulate(-products, hardware), -found)
        assert torch.equal(accumulate(products * 2.0**20, hardware), found * 2.0**20)


def test_positive_sums_only_shrink_and_promotion_bounds_by_how_much():
    products = torch.rand(20, 4096, generator=torch.Generator().manual_seed(0)).double()
    exact = products.sum(1)
    limited = accumulate(products, Accumulator())
    promoted = accumulate(products, Accumulator(promotion=128))
    assert (limited < promoted).all()
    assert (promoted < exact).all()
    # A promoted register loses less than one spacing per product and group of its own sum.
    assert (1 - promoted / exact).max() < (128 + 4) * 2.0**-13


def draw(uniform: bool, dots: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    make = torch.rand if uniform else torch.randn
    return make(dots, length, generator=generator), make(dots, length, generator=generator)


def errors(products: Tensor, hardware: Accumulator) -> tuple[float, float]:
    exact = products.sum(1)
    off = accumulate(products, hardware) - exact
    return (off.abs().max() / exact.abs().max()).item(), (off.norm() / exact.norm()).item()


@pytest.mark.parametrize(
    ("uniform", "length", "limited", "promoted"),
    [
        (False, 1024, (2.9e-3, 1.2e-3), (5e-4, 3.9e-4)),
        (False, 4096, (3.6e-3, 2.4e-3), (3.6e-4, 3.9e-4)),
        (False, 16384, (1.2e-2, 4.8e-3), (3.7e-4, 3.9e-4)),
        (True, 1024, (2.2e-2, 2.0e-2), (2.4e-3, 2.2e-3)),
        (True, 4096, (8.2e-2, 8.1e-2), (2.3e-3, 2.2e-3)),
        (True, 16384, (2.6e-1, 2.6e-1), (2.2e-3, 2.2e-3)),
    ],
)
def test_scaled_operands_err_as_in_an_independent_simulation(uniform, length, limited, promoted):
    """That simulation had scales of 1/448 of the maximum multiplied into the operands.

    Its products thus have all bits of float64, and lose more than those of FP8 hardware, which
    multiplies unscaled values: see the next test.
    """
    a, b = (fake_quantize(x, E4M3, "row").double() for x in draw(uniform, 256, length))
    for hardware, wanted in ((Accumulator(), limited), (Accumulator(promotion=128), promoted)):
        largest, frobenius = errors(a * b, hardware)
        assert frobenius == pytest.approx(wanted[1], rel=0.1)
        # One value of 256 or 4096 decides: its scatter is large for sums around zero.
        assert largest == pytest.approx(wanted[0], rel=0.1 if uniform else 0.5)


@pytest.mark.parametrize("uniform", [False, True])
def test_what_the_hardware_sees_loses_less(uniform):
    matrices = draw(uniform, 256, 1024)
    scaled = [fake_quantize(x, E4M3, "row").double() for x in matrices]
    values = [quantize(x, E4M3, "row").values.double() for x in matrices]
    for hardware, share in ((Accumulator(), 0.8), (Accumulator(promotion=128), 0.4)):
        inside = errors(values[0] * values[1], hardware)[1]
        assert inside < share * errors(scaled[0] * scaled[1], hardware)[1]


def test_empty_and_zero_products():
    for hardware in (Accumulator(), Accumulator(promotion=128)):
        assert accumulate(torch.zeros(3, 100), hardware).tolist() == [0, 0, 0]
        assert accumulate(torch.zeros(3, 0), hardware).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((0, 32, None), "0 fraction_bits"), ((13, 0, None), "align 0"), ((13, 32, 100), "100"),
     ((41, 32, None), "1 to 40"), ((13, 32, 0), "a multiple of align 32")],
)  # fmt: skip
def test_impossible_hardware_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        Accumulator(*numbers)
