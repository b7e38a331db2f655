"""Checksummed products against float64, and flipped bits against the words of numpy."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.numerics.bit_flips import bit_names, flip_bit_
from harness.numerics.checksummed import (
    checksummed_product,
    correct,
    encode,
    extra_operations,
    product,
    tolerances,
    verify,
)

DTYPES = [torch.float32, torch.bfloat16]
BOUNDS = ["deterministic", "probabilistic"]
sizes = st.integers(1, 40)


def factors(rows, inner, columns, seed=0, dtype=torch.float32, spread=0.0):
    """Gaussian factors whose entries range over 2 * ``spread`` powers of ten."""
    random = np.random.default_rng(seed)

    def draw(*shape):
        values = random.standard_normal(shape) * 10 ** random.uniform(-spread, spread, shape)
        return torch.from_numpy(values).to(dtype)

    return draw(rows, inner), draw(inner, columns)


@pytest.mark.parametrize(
    ("dtype", "word"), [(torch.float32, np.uint32), (torch.bfloat16, np.uint16)]
)
def test_a_flip_is_that_of_the_words_of_numpy(dtype, word):
    kind = {torch.float32: np.float32, torch.bfloat16: ml_dtypes.bfloat16}[dtype]
    values = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(kind)
    width = 8 * values.itemsize
    assert len(bit_names(dtype)) == width
    for position, bit in enumerate(bit_names(dtype)):
        found = torch.from_numpy(values.astype(np.float64)).to(dtype)
        flip_bit_(found, 37, bit)
        expected = values.copy()
        expected.reshape(-1).view(word)[37] ^= word(1 << (width - 1 - position))
        np.testing.assert_array_equal(
            found.float().numpy(), expected.astype(np.float32), err_msg=bit
        )


def test_names_of_bits_say_what_they_are_worth():
    def flipped(value, bit):
        x = torch.tensor([value])
        flip_bit_(x, 0, bit)
        return x.item()

    assert flipped(1.0, "sign") == -1.0
    assert flipped(1.0, "mantissa_1") == 1.5
    assert flipped(1.0, "exponent_0") == 0.5
    assert flipped(0.5, "exponent_0") == 1.0
    assert flipped(0.0, "exponent_7") == 2.0
    assert flipped(1.0, "exponent_7") == np.inf


@given(st.integers(0, 59), st.sampled_from(bit_names(torch.float32)), st.booleans())
def test_a_second_flip_undoes_the_first(index, bit, transposed):
    values = torch.randn(6, 10, generator=torch.Generator().manual_seed(index))
    x = values.clone().T if transposed else values.clone()
    before = x.clone()
    flip_bit_(x, index, bit)
    changed = (x.view(torch.int32) != before.view(torch.int32)).flatten().nonzero()
    assert changed.tolist() == [[index]]
    flip_bit_(x, index, bit)
    assert torch.equal(x, before)


def test_autograd_does_not_see_a_flip():
    x = torch.ones(3, requires_grad=True)
    y = x.square()
    flip_bit_(y, 1, "sign")
    assert y.tolist() == [1, -1, 1]
    y.sum().backward()
    assert x.grad.tolist() == [2, 2, 2]


@given(sizes, sizes, sizes, st.integers(0, 1000), st.floats(0, 6), st.sampled_from(DTYPES),
       st.sampled_from(BOUNDS))  # fmt: skip
def test_a_correct_product_is_never_refused(rows, inner, columns, seed, spread, dtype, bound):
    found, verdict = checksummed_product(*factors(rows, inner, columns, seed, dtype, spread), bound)
    assert verdict.is_clean
    assert verdict.place is None
    assert verdict.largest <= 1
    assert found.shape == (rows, columns)


@pytest.mark.parametrize("draw", [torch.ones, torch.rand])
def test_sums_without_cancellation_stay_below_the_bound(draw):
    left, right = draw(64, 2000), draw(2000, 64)
    for bound in BOUNDS:
        assert checksummed_product(left, right, bound)[1].is_clean


def test_the_deterministic_bound_is_where_all_roundings_conspire():
    rows, inner = 64, 256
    left, right = torch.ones(rows, inner), torch.ones(inner, rows)
    checksums, gamma = encode(left, right), inner * 2.0**-24
    for share, allowed in ((0.9, True), (1.1, False)):
        # Below 256 numbers are 2^-16 apart: what is added here is no rounding of its own.
        drifted = product(left, right) * (1 - share * gamma)
        assert verify(left, right, drifted, checksums, "deterministic").is_clean is allowed
        # Independent roundings do not conspire.
        assert not verify(left, right, drifted, checksums, "probabilistic").is_clean


def test_the_tolerance_covers_what_float64_says_a_column_may_be_off_by():
    left, right = (x.double() for x in factors(30, 50, 20, spread=2))
    norms = left.norm(dim=1), right.norm(dim=0)
    unit = 2.0**-24
    gamma = 50 * unit / (1 - 50 * unit)
    exact = gamma * (left.abs() @ right.abs()).sum(0)
    found = tolerances(*norms, 50, "deterministic", unit)
    assert (found >= exact).all()
    # By no more than Cauchy and Schwarz give away.
    assert torch.allclose(found, gamma * norms[0].sum() * norms[1], rtol=1e-6)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_wrong_entry_is_found_and_mended(dtype, bound):
    left, right = factors(24, 32, 40, dtype=dtype)
    checksums, clean = encode(left, right), product(left, right)
    exact = left.double() @ right.double()
    for index in range(0, clean.numel(), 37):
        for bit in ("sign", "exponent_7", "exponent_1"):
            wrong = clean.clone()
            flip_bit_(wrong, index, bit)
            if (wrong - clean).abs().max() < 1e-2:
                continue
            verdict = verify(left, right, wrong, checksums, bound)
            assert verdict.place == divmod(index, 40)
            # What is left is the rounding of the other entries of the column.
            mended = correct(wrong, verdict).double()
            assert (mended - exact).abs().max() < 24 * 32 * 2.0**-24 * 10


def test_a_wrong_entry_that_is_not_a_number_is_mended_too():
    left, right = factors(5, 6, 7)
    wrong = product(left, right)
    expected = wrong[2, 3].item()
    wrong[2, 3] = torch.nan
    verdict = verify(left, right, wrong, encode(left, right))
    assert verdict.place == (2, 3)
    assert correct(wrong, verdict)[2, 3].item() == pytest.approx(expected, rel=1e-5)


def test_a_factor_that_changed_after_its_checksums_is_noticed():
    left, right = factors(20, 30, 25)
    checksums = encode(left, right)
    for side in range(2):
        pair = [left.clone(), right.clone()]
        flip_bit_(pair[side], 77, "exponent_7")
        verdict = verify(*pair, product(*pair), checksums)
        assert not verdict.is_clean
        # A row or column of the product is wrong: more than one entry, so none can be mended.
        assert verdict.place is None
        with pytest.raises(ValueError, match="only a single wrong entry"):
            correct(product(*pair), verdict)


def test_the_probabilistic_bound_overlooks_less():
    left, right = factors(300, 300, 300)
    checksums, wrong = encode(left, right), product(left, right)
    wrong[3, 4] += 0.1
    assert verify(left, right, wrong, checksums, "deterministic").is_clean
    assert verify(left, right, wrong, checksums, "probabilistic").place == (3, 4)


@given(sizes, sizes, sizes)
def test_extra_operations_are_those_of_the_sums(rows, inner, columns):
    sums = rows * inner + inner * columns
    squares = 2 * sums
    checks = 2 * (inner * columns + rows * inner)
    assert extra_operations(rows, inner, columns) == sums + squares + checks + 2 * rows * columns


def test_the_extra_share_of_square_products_falls_as_one_over_the_size():
    shares = {n: extra_operations(n, n, n) / (2 * n**3) for n in (128, 1024, 8192)}
    assert shares == pytest.approx({n: 6 / n for n in shares})


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 2), "expected M x K and K x N"),
        (torch.ones(2, 3), torch.ones(3, 2).bfloat16(), "expected float32 or bfloat16 on both"),
        (torch.ones(2, 3).double(), torch.ones(3, 2).double(), "expected float32 or bfloat16"),
    ],
)
def test_bad_factors_are_named(left, right, message):
    with pytest.raises(ValueError, match=message):
        checksummed_product(left, right)


def test_products_that_torch_may_round_are_refused():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ValueError, match="found medium, expected highest"):
            checksummed_product(torch.ones(2, 2), torch.ones(2, 2))
    finally:
        torch.set_float32_matmul_precision(before)


def test_bad_bits_and_types_are_named():
    with pytest.raises(ValueError, match="found 'mantissa_8', expected one of sign to mantissa_7"):
        flip_bit_(torch.ones(2).bfloat16(), 0, "mantissa_8")
    with pytest.raises(ValueError, match=r"found torch.float64, expected float32"):
        bit_names(torch.float64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_correct_products_of_a_gpu_are_not_refused(dtype):
    for seed in range(20):
        left, right = (x.cuda() for x in factors(512, 1024, 384, seed, dtype))
        assert checksummed_product(left, right)[1].is_clean
    if dtype == torch.bfloat16:
        with pytest.raises(ValueError, match="errors have a bias"):
            checksummed_product(left, right, "probabilistic")
