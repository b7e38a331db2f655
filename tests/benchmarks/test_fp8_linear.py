import json
import runpy
from pathlib import Path

import pytest
import torch

from harness.config.catalog import load_models

ROOT = Path(__file__).parents[2]
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "fp8_linear.py"))
MODELS = load_models(ROOT / "config" / "models.yaml")


def test_it_says_what_was_emulated_and_reports_ratios_and_errors(tmp_path, capsys):
    output = tmp_path / "fp8.json"
    BENCHMARK["main"](["--output", str(output), "--model", "decoder_tiny", "--tokens", "48",
                       "--rounds", "1"])  # fmt: skip
    report = json.loads(output.read_text())
    assert set(report["backend"].values()) == {"emulated"}
    assert report["accumulation"] is None
    assert json.loads(capsys.readouterr().out)["backend"] == report["backend"]
    for layer in report["layers"].values():
        timed = layer["forward_and_backward"]
        times = timed["median_seconds"]
        for recipe in ("fp8_tensor", "fp8_row", "fp8_block"):
            # One round: the ratio of medians is the median of ratios.
            expected = times[recipe] / times["bfloat16"]
            assert timed["ratios"][f"{recipe}/bfloat16"] == pytest.approx(expected)
            for product in ("output", "input_gradient", "weight_gradient"):
                errors = {name: layer["errors"][name][product] for name in layer["errors"]}
                # Three mantissa bits against seven.
                assert 4 * errors["bfloat16"] < errors[recipe] < 0.06
        # What tensor cores would do is not claimed of an emulation.
        assert list(layer["forward_product_alone"]["median_seconds"]) == ["bfloat16"]


def test_layers_of_the_published_sample_model():
    shapes = BENCHMARK["layer_shapes"](MODELS["decoder_1b"])
    # Query and output, key and value, gate and up, down of Llama-3.2-1B.
    assert sorted(shapes.values()) == [(2048, 512), (2048, 2048), (2048, 8192), (8192, 2048)]


def test_an_unknown_model_is_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        BENCHMARK["main"](["--output", str(tmp_path / "fp8.json"), "--model", "decoder_tny"])
    assert "--model: found 'decoder_tny' (did you mean 'decoder_tiny'?)" in capsys.readouterr().err


def test_accumulation_errors_leave_out_the_rounding_of_operands():
    try:
        errors = BENCHMARK["accumulation_errors"](64, torch.device("cpu"))
    except NotImplementedError:
        pytest.skip("this torch multiplies FP8 on GPUs only")
    # A CPU adds up in float32 whatever it is asked for.
    for by_accumulation in errors.values():
        for error in by_accumulation.values():
            assert error["frobenius"] < 1e-6
            assert error["largest"] < 1e-5
