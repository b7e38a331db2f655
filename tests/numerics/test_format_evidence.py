"""Records on formats and accumulation against independent simulations and closed forms."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from harness.errors import UserError
from harness.numerics.format_evidence import (
    accumulation_error,
    codec_cost,
    format_signal_to_noise,
    logfmt_rounding_bias,
)
from harness.numerics.logfmt import encode

# Decibels over 2^20 values by an independent simulation: normal, Student's t with four degrees of
# freedom, and normal times lognormal.
SIMULATED = {
    ("e4m3", "tile"): (31.8, 32.4, 33.8),
    ("e5m2", "tile"): (25.8, 26.5, 27.8),
    ("e4m3", "tensor"): (31.5, 31.6, 31.6),
    ("logfmt8", "tile"): (37.0, 36.7, 36.3),
    ("logfmt10", "tile"): (49.2, 48.9, 48.4),
}


def test_signal_to_noise_is_that_of_an_independent_simulation():
    records = format_signal_to_noise(
        formats=["e4m3", "e5m2", "logfmt8", "logfmt10", "bfloat16"],
        scalings=["tile", "tensor"],
        distributions=["normal", "student_t4", "normal_times_lognormal"],
        samples=2**20,
        tile=128,
        seeds=[0],
    )
    found = defaultdict(list)
    for record in records:
        assert (record["metric"], record["unit"]) == ("format/signal_to_noise", "dB")
        assert (record["seed"], record["labels"]["tile"]) == (0, 128)
        found[record["labels"]["format"], record["labels"]["scaling"]].append(record["value"])
    for key, wanted in SIMULATED.items():
        assert found[key] == pytest.approx(wanted, abs=0.2)
    assert found["bfloat16", "none"][0] == pytest.approx(55.6, abs=0.1)


def test_signal_to_noise_of_uniform_values_in_closed_form():
    """The error of a binade [2^e, 2^(e+1)) is a twelfth of its squared spacing, 2^(2 (e - m)) / 12.

    Of uniform values on [0, 1) a share of 2^e lies in binade e, so squared errors sum to
    4^-m / 12 times the sum of 8^e over e < 0, which is 1/7; squares sum to 1/3.
    """
    [record] = format_signal_to_noise(["bfloat16"], ["tile"], ["uniform"], 2**20, 128, [3])
    assert record["value"] == pytest.approx(10 * np.log10(4 * 7 * 4**7), abs=0.02)


def test_a_scale_per_tile_beats_one_per_tensor_and_powers_of_two():
    records = format_signal_to_noise(
        ["e4m3"], ["tensor", "tile", "tile_power_of_two"], ["laplace"], 2**16, 128, [0]
    )
    values = {record["labels"]["scaling"]: record["value"] for record in records}
    assert values["tile"] > values["tile_power_of_two"]
    assert values["tile"] > values["tensor"]


def test_rounding_bias_follows_the_square_of_the_step():
    """Neither rounding is free of bias: -s^2/12 in linear space, s^2/24 between logarithms.

    In a gap h = s x with density f, rounding values adds f' / f h^2 / 24 on average; integrated by
    parts over all x this is -s^2 / 12 of the mean for any smooth density. Logarithms round at the
    geometric mean, s^2 x / 8 below the middle, so that this share of x more is added.
    """
    bits, tile, samples = 6, 512, 2**19
    records = logfmt_rounding_bias([bits], [tile], ["normal", "laplace"], samples, [0, 1])
    signed, absolute = (
        [record for record in records if record["metric"] == f"logfmt/{kind}rounding_bias"]
        for kind in ("", "absolute_")
    )
    assert len(signed) == 2 * 2 * 2
    assert [abs(one["value"]) for one in signed] == [one["value"] for one in absolute]
    found = defaultdict(list)
    for record in signed:
        assert record["labels"]["tile"] == tile
        found[record["labels"]["distribution"], record["labels"]["rounding"]].append(
            record["value"]
        )
    for distribution, make in {"normal": "standard_normal", "laplace": "laplace"}.items():
        values = getattr(np.random.default_rng(0), make)(size=(samples // tile, tile))
        x = torch.from_numpy(values).float()
        weights = x.abs().sum(1) / x.abs().sum()
        square = (encode(x, bits, tile).step[:, 0].square() * weights).sum().item()
        linear, logarithmic = (np.mean(found[distribution, kind])
                               for kind in ("linear", "logarithmic"))  # fmt: skip
        assert linear == pytest.approx(-square / 12, rel=0.1)
        assert logarithmic == pytest.approx(square / 24, rel=0.1)


def test_accumulation_records_have_all_labels_and_grow_with_length():
    records = accumulation_error(
        lengths=[512, 2048],
        fraction_bits=[13, 40],
        promotions=["none", 128],
        distributions=["normal", "uniform"],
        dots=64,
        align=32,
        seeds=[0, 1],
    )
    assert len(records) == 3 * 2**5
    values = {}
    for record in records:
        labels = record["labels"]
        key = tuple(labels[name] for name in ("distribution", "length", "fraction_bits",
                                              "promotion"))  # fmt: skip
        assert labels["align"] == 32
        values[record["metric"], *key, record["seed"]] = record["value"]
    bias, frobenius = "accumulation/bias", "accumulation/frobenius_error"
    for seed in (0, 1):
        short, long = (values[frobenius, "uniform", length, 13, "none", seed]
                       for length in (512, 2048))  # fmt: skip
        assert 4 < long / short < 8
        # Positive terms shrink alike: error and bias are the same number.
        assert values[bias, "uniform", 2048, 13, "none", seed] == pytest.approx(-long, rel=0.01)
        assert values[frobenius, "uniform", 2048, 13, 128, seed] < 1e-3
        # Products are multiples of 2^-18 and these sums below 2^22.
        assert values[frobenius, "normal", 2048, 40, "none", seed] == 0
        # Only the float32 sum of promoted parts rounds.
        assert 0 < values[frobenius, "normal", 2048, 40, 128, seed] < 1e-6
        assert values["accumulation/max_error", "uniform", 512, 13, "none", seed] > short


def test_sums_around_zero_shrink_whatever_their_sign():
    records = accumulation_error([512], [13], [128], ["normal"], 1024, 32, seeds=[0, 1, 2])
    biases = [r["value"] for r in records if r["metric"] == "accumulation/bias"]
    assert len(biases) == 3
    # 3e-5 by simulation, of errors of 1.3e-4: five standard errors from zero.
    assert all(-6e-5 < bias < -1e-5 for bias in biases)


def test_dot_products_in_parts_give_the_same_records(monkeypatch):
    arguments = dict(lengths=[64], fraction_bits=[13], promotions=["none"], dots=10, align=32,
                     distributions=["normal"], seeds=[0])  # fmt: skip
    whole = accumulation_error(**arguments)
    monkeypatch.setattr("harness.numerics.format_evidence.CHUNK", 64 * 4)
    assert accumulation_error(**arguments) == whole


def test_codecs_are_timed_against_a_copy_in_every_round():
    records = codec_cost(["logfmt8", "e4m3"], 8, 4, 16, rounds=2, device="cpu")
    times = {(r["labels"]["codec"], r["labels"]["round"]): r["value"]
             for r in records if r["metric"] == "codec/time"}  # fmt: skip
    assert set(times) == {(name, r) for name in ("copy", "logfmt8", "e4m3") for r in (0, 1)}
    ratios = [record for record in records if record["metric"] == "codec/time_over_copy"]
    assert len(ratios) == 4
    for record in ratios:
        name, round_ = record["labels"]["codec"], record["labels"]["round"]
        assert record["value"] == times[name, round_] / times["copy", round_]


SIGNAL = dict(formats=["e4m3"], scalings=["tile"], distributions=["normal"], samples=256, tile=128,
              seeds=[0])  # fmt: skip
BIAS = dict(bits=[8], tiles=[128], distributions=["normal"], samples=256, seeds=[0])
SUMS = dict(lengths=[64], fraction_bits=[13], promotions=["none"], distributions=["normal"],
            dots=2, align=32, seeds=[0])  # fmt: skip
CODEC = dict(formats=["e4m3"], tile=8, rows=2, columns=16, rounds=1, device="cpu")


@pytest.mark.parametrize(
    ("function", "arguments", "change", "message"),
    [
        (format_signal_to_noise, SIGNAL, {"formats": ["e4m4"]}, "'e4m4'.*did you mean 'e4m3'"),
        (format_signal_to_noise, SIGNAL, {"scalings": ["tiles"]}, "did you mean 'tile'"),
        (format_signal_to_noise, SIGNAL, {"distributions": ["norml"]}, "did you mean 'normal'"),
        (format_signal_to_noise, SIGNAL, {"samples": 200}, "found 200, expected a multiple of"),
        (format_signal_to_noise, SIGNAL, {"seeds": []}, "seeds: found"),
        (logfmt_rounding_bias, BIAS, {"bits": [2]}, "bits: found 2, expected 3 to 15"),
        (logfmt_rounding_bias, BIAS, {"tiles": [100]}, "expected a multiple of tile 100"),
        (accumulation_error, SUMS, {"promotions": [100]}, "a multiple of align 32"),
        (accumulation_error, SUMS, {"promotions": ["never"]}, "promotions.*'never'"),
        (accumulation_error, SUMS, {"fraction_bits": [60]}, "expected 1 to 40"),
        (accumulation_error, SUMS, {"lengths": [0]}, "lengths.*found 0"),
        (codec_cost, CODEC, {"formats": ["e5m6"]}, "'e5m6'.*did you mean"),
        (codec_cost, CODEC, {"tile": 5}, "expected a divisor of columns 16"),
    ],
)
def test_bad_arguments_are_answered_in_one_line(function, arguments, change, message):
    with pytest.raises(UserError, match=message) as error:
        function(**(arguments | change))
    assert "\n" not in str(error.value)
