"""Time and error of linear layers in FP8 beside bfloat16, all in turn in one process.

    python benchmarks/fp8_linear.py --output fp8_linear.json --device cuda

A layer is timed forward and backward with float32 weights under bfloat16 autocast, as in training.
Its FP8 time includes finding scales and rounding, which are plain torch operations here and fused
kernels elsewhere; the time of one product alone shows what is left without them. All numbers to
compare are ratios within a round. Without FP8 tensor cores for a recipe its products are emulated
in float32: the output says so, and then only its errors mean something.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.config.catalog import load_models
from harness.config.decoder_schema import DecoderSpec, Fp8
from harness.errors import closest
from harness.measurement.benchmark import benchmark_parser, parse_options, write_report
from harness.measurement.optimizer_step import WARMUP_ROUNDS, timed
from harness.models import build_model
from harness.models.fp8 import fp8_backend, hardware_product
from harness.models.linear import Linear, project
from harness.numerics.formats import E4M3
from harness.numerics.scaling import dequantize, quantize

CONFIG = Path(__file__).parents[1] / "config"
# Model whose layers are timed, and tokens of a batch.
DEFAULTS = {"cpu": ("decoder_10m", 256), "cuda": ("decoder_1b", 8192)}
# Calls between two looks at the clock: waiting for a GPU takes as long as one of its products.
CALLS = {"cpu": 1, "cuda": 20}
BASELINE = "bfloat16"
RECIPES = {f"fp8_{scaling}": Fp8(scaling=scaling) for scaling in ("tensor", "row", "block")}
PRODUCTS = ("output", "input_gradient", "weight_gradient")
# Length of the sums for which DeepSeek-V3 (section 3.3.2) names an error of nearly 2 %.
ACCUMULATED = 4096
ROWS = 1024


def layer_shapes(spec: DecoderSpec) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of the linear layers of one block, each shape once."""
    with torch.device("meta"):
        model: Any = build_model(spec, vocab_size=1)
    names: dict[tuple[int, int], str] = {}
    for name, module in model.blocks[-1].named_modules():
        if isinstance(module, Linear):
            names.setdefault((module.in_features, module.out_features), name)
    return {name: shape for shape, name in names.items()}


def draw(tokens: int, inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return Gaussian bfloat16 activations, float32 weights and bfloat16 output gradients."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.empty(shape, device=device).normal_(generator=generator)

    x = normal(tokens, inputs).bfloat16().requires_grad_()
    weight = normal(outputs, inputs).requires_grad_()
    return x, weight, normal(tokens, outputs).bfloat16()


def run(x: Tensor, weight: Tensor, gradient: Tensor, fp8: Fp8 | None) -> tuple[Tensor, ...]:
    """Return output, input gradient and weight gradient of one layer as training computes them."""
    with torch.autocast(x.device.type, torch.bfloat16):
        output = project(x, weight, fp8)
    return output, *torch.autograd.grad(output, (x, weight), gradient)


def errors(x: Tensor, weight: Tensor, gradient: Tensor, fp8: Fp8 | None) -> dict[str, float]:
    """Return the relative error (Frobenius norm) of each product against float64."""
    wide = [tensor.detach().double() for tensor in (x, weight, gradient)]
    exact = (wide[0] @ wide[1].T, wide[2] @ wide[1], wide[2].T @ wide[0])
    results = run(x, weight, gradient, fp8)
    return {
        name: ((result.double() - expected).norm() / expected.norm()).item()
        for name, result, expected in zip(PRODUCTS, results, exact, strict=True)
    }


def products_alone(x: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return functions that compute the output from prepared operands, on tensor cores."""
    left, right = x.detach(), weight.detach()
    narrow = right.bfloat16()
    found: dict[str, Callable[[], Tensor]] = {BASELINE: lambda: left @ narrow.T}
    for name, fp8 in RECIPES.items():
        if fp8_backend(fp8, x.device) == "hardware":
            operands = (
                quantize(left, E4M3, "tile" if fp8.scaling == "block" else fp8.scaling),
                quantize(right, E4M3, fp8.scaling),
            )
            found[name] = partial(hardware_product, *operands, fp8, torch.bfloat16)
    return found


def compare(
    steps: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, Any]:
    """Return median times of one call (s), and medians over rounds of the ratios to bfloat16."""
    calls = CALLS[device.type]
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-WARMUP_ROUNDS, rounds):
        for name, step in steps.items():
            seconds = timed(lambda step=step: [step() for _ in range(calls)], device) / calls
            if round_ >= 0:
                times[name].append(seconds)
    return {
        "median_seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratios": {
            f"{name}/{BASELINE}": statistics.median(
                own / other for own, other in zip(times[name], times[BASELINE], strict=True)
            )
            for name in steps
            if name != BASELINE
        },
    }


def measure_layer(
    tokens: int, inputs: int, outputs: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Return times and errors of one layer: bfloat16 and every recipe."""
    x, weight, gradient = draw(tokens, inputs, outputs, device)
    recipes: dict[str, Fp8 | None] = {BASELINE: None, **RECIPES}
    layers = {name: partial(run, x, weight, gradient, fp8) for name, fp8 in recipes.items()}
    return {
        "tokens": tokens,
        "inputs": inputs,
        "outputs": outputs,
        "errors": {name: errors(x, weight, gradient, fp8) for name, fp8 in recipes.items()},
        "forward_and_backward": compare(layers, rounds, device),
        "forward_product_alone": compare(products_alone(x, weight), rounds, device),
    }


def accumulation_errors(
    length: int, device: torch.device
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the errors of sums of ``length`` products with and without fast accumulation.

    They are against the float64 products of the same E4M3 operands, whose own rounding thus does
    not count: by inputs (normal, or uniform between 0 and 1) and accumulation, the largest error
    over the largest value and the relative Frobenius error.
    """
    generator = torch.Generator(device).manual_seed(0)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for inputs, fill in (("normal", Tensor.normal_), ("uniform", Tensor.uniform_)):
        left, right = (
            quantize(
                fill(torch.empty(ROWS, length, device=device), generator=generator),
                E4M3,
                "tensor",
            )
            for _ in range(2)
        )
        exact = dequantize(left, torch.float64) @ dequantize(right, torch.float64).T
        result[inputs] = {
            name: _errors(
                hardware_product(
                    left, right, RECIPES["fp8_tensor"], torch.float32, fast_accumulation=fast
                ),
                exact,
            )
            for name, fast in (("split", False), ("fast", True))
        }
    return result


def _errors(result: Tensor, exact: Tensor) -> dict[str, float]:
    difference = result.double() - exact
    return {
        "largest": (difference.abs().max() / exact.abs().max()).item(),
        "frobenius": (difference.norm() / exact.norm()).item(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print its ratios and write everything as JSON."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds")
    parser.add_argument("--model", help="decoder of config/models.yaml")
    parser.add_argument("--tokens", type=int, help="of a batch")
    options = parse_options(parser, arguments)
    device = torch.device(options.device)
    model, tokens = DEFAULTS[options.device]
    model, tokens = options.model or model, options.tokens or tokens
    models = load_models(CONFIG / "models.yaml")
    decoders = {name: spec for name, spec in models.items() if isinstance(spec, DecoderSpec)}
    if model not in decoders:
        parser.error(f"--model: found '{model}'{closest(model, decoders)}")
    backends = {name: fp8_backend(fp8, device) for name, fp8 in RECIPES.items()}
    report = {
        "model": model,
        "backend": backends,
        "layers": {
            name: measure_layer(tokens, inputs, outputs, options.rounds, device)
            for name, (inputs, outputs) in layer_shapes(decoders[model]).items()
        },
        # Only tensor cores accumulate in two ways.
        "accumulation": (
            accumulation_errors(ACCUMULATED, device)
            if backends["fp8_tensor"] == "hardware"
            else None
        ),
    }
    write_report(options, report)
    ratios = {
        name: layer["forward_and_backward"]["ratios"] for name, layer in report["layers"].items()
    }
    print(json.dumps({"backend": backends, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
