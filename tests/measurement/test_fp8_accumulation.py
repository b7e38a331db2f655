"""The comparison of FP8 accumulation, with tensor cores whose sums are known."""

import pytest
import torch
import torch.nn.functional as F

from harness.errors import UserError
from harness.measurement import fp8_accumulation as module
from harness.measurement.fp8_accumulation import compare, fp8_accumulation, operands
from harness.numerics.accumulation import Accumulator, accumulate, sum_errors
from harness.numerics.format_evidence import accumulation_error

ARGUMENTS = {"lengths": [256], "distributions": ["uniform"], "dots": 16, "seeds": [0]}


def tensor_cores(fast_bits, calls):
    """Return `scaled_mm` with short registers if accumulation is fast, else with exact sums."""

    def scaled_mm(a, b, scale_a, recipe_a, scale_b, recipe_b, *, output_dtype, use_fast_accum):
        assert (scale_a, scale_b) == (1, 1)
        assert output_dtype == torch.float32
        calls.append((a.shape[1], use_fast_accum))
        products = a.double()[:, None] * b.T.double()[None]
        if not use_fast_accum:
            return products.sum(2).float()
        sums = accumulate(products.flatten(0, 1), Accumulator(fast_bits, 32))
        return sums.view(products.shape[:2]).float()

    return scaled_mm


@pytest.fixture
def hardware(monkeypatch):
    """Tensor cores of 13 fraction bits; `hardware(bits)` changes that."""
    calls = []

    def use(bits):
        monkeypatch.setattr(F, "scaled_mm", tensor_cores(bits, calls))
        return calls

    use(13)
    return use


def values(records, metric):
    return {
        (record["labels"]["promotion"], record["labels"].get("method")): record["value"]
        for record in records
        if record["metric"] == f"tensor_cores/{metric}"
    }


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_hardware_as_emulated_is_recognised_sum_by_sum(hardware, distribution):
    records = compare(*operands(distribution, 16, 512, seed=0))
    assert values(records, "equal_to_emulation") == {("none", None): 1.0, (128, None): 1.0}
    for metric in ("max_error", "frobenius_error", "bias"):
        found = values(records, metric)
        # The tensor cores' result is rounded to float32 once more.
        for promotion in ("none", 128):
            expected = found[promotion, "emulated"]
            assert found[promotion, "measured"] == pytest.approx(expected, abs=1e-7)


def test_hardware_with_other_registers_is_told_apart(hardware):
    hardware(8)
    records = compare(*operands("uniform", 16, 512, seed=0))
    assert values(records, "equal_to_emulation")["none", None] < 0.5
    found = values(records, "max_error")
    assert found["none", "measured"] > 4 * found["none", "emulated"]


def test_errors_are_those_of_the_emulated_experiment(hardware):
    """With the same seeds: its definitions, through independent code."""
    emulated = accumulation_error([512], [13], ["none", 128], ["normal"], 16, 32, [3])
    expected = {
        (record["metric"].split("/")[1], record["labels"]["promotion"]): record["value"]
        for record in emulated
    }
    records = compare(*operands("normal", 16, 512, seed=3))
    for metric in ("max_error", "frobenius_error", "bias"):
        for promotion in ("none", 128):
            actual = values(records, metric)[promotion, "emulated"]
            assert actual == pytest.approx(expected[metric, promotion], rel=1e-12)


def test_the_library_is_asked_for_exact_sums_and_promotion_for_parts(hardware):
    calls = hardware(13)
    calls.clear()
    found = values(compare(*operands("uniform", 16, 384, seed=0)), "max_error")
    assert calls == [(384, True), (384, False), *[(128, True)] * 3]
    assert found["library", "measured"] < 1e-7
    assert ("library", "emulated") not in found
    assert found["none", "measured"] > found[128, "measured"] > found["library", "measured"]


def test_errors_of_known_sums():
    found = sum_errors(torch.tensor([1.5, -4.0]).double(), torch.tensor([2.0, -4.0]).double())
    assert found == {
        "max_error": 0.125,
        "frobenius_error": pytest.approx(0.5 / 20**0.5),
        "bias": pytest.approx(-0.5 / 6),
    }


def test_a_gpu_without_fp8_says_so_and_nothing_else(monkeypatch):
    monkeypatch.setattr(module, "fp8_backend", lambda fp8, device: "emulated")
    [record] = fp8_accumulation(**ARGUMENTS, device="cuda")
    assert (record["metric"], record["value"]) == ("tensor_cores/supported", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cpu"}, "device: found 'cpu', expected 'cuda'"),
        ({"lengths": [100]}, "found 100, expected multiples of 128"),
        ({"distributions": ["unifrom"]}, "did you mean 'uniform'"),
        ({"dots": 0}, "dots"),
    ],
)
def test_mistakes_end_with_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        fp8_accumulation(**{**ARGUMENTS, "device": "cuda", **change})
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_sums_long_products_no_better_than_promoted_ones():
    records = fp8_accumulation([4096], ["uniform"], 256, [0], "cuda")
    if not records[0]["value"]:
        pytest.skip("this GPU has no FP8 tensor cores")
    found = values(records, "max_error")
    # Float32 sums of exact products would be within 4096 roundings.
    assert found["library", "measured"] <= found["none", "measured"]
    assert found[128, "measured"] <= found["none", "measured"]
