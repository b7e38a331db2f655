"""FP8 linear layers against a reference in numpy, float64 and the float8 types of ml_dtypes.

`torch.autograd.gradcheck` does not apply: the products are piecewise constant in their operands, so
finite differences are zero or jumps, while the gradients are those of products without rounding,
themselves rounded.
"""

import math
import re
import weakref

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.config.base import validate
from harness.config.decoder_schema import Fp8
from harness.config.model_schema import ModelSpec
from harness.models import build_model
from harness.models.fp8 import Fp8Product
from harness.models.linear import Linear, fp8_layers, project

TYPES = {"e4m3": (ml_dtypes.float8_e4m3fn, 448.0), "e5m2": (ml_dtypes.float8_e5m2, 57344.0)}
# Tokens, inputs, outputs: whole blocks of 32, ragged tokens, everything ragged, one token.
SHAPES = [((64,), 64, 96), ((2, 23), 64, 32), ((3, 5, 2), 40, 24), ((1,), 32, 32)]
SCALINGS = ["tensor", "row", "block"]


def reference_rounding(x, format, group, power_of_two=False):
    """Quantise groups of a float32 matrix one by one and return what is left, in float32."""
    dtype, largest = TYPES[format]
    result = np.zeros_like(x)
    for row in range(0, x.shape[0], group[0]):
        for column in range(0, x.shape[1], group[1]):
            part = x[row : row + group[0], column : column + group[1]]
            scale = np.float32(np.abs(part).max() / np.float32(largest))
            if power_of_two and scale > 0:
                scale = np.float32(2.0 ** math.ceil(math.log2(scale)))
            if scale > 0:
                values = np.clip(part / scale, -largest, largest).astype(dtype)
                result[row : row + group[0], column : column + group[1]] = (
                    values.astype(np.float32) * scale
                )
    return result


def reference_linear(x, weight, gradient, fp8):
    """Return output, input gradient and weight gradient of matrices, multiplied in float64."""
    block, everything = fp8.block_size, 10**9
    tile, square = {
        "tensor": ((everything, everything), (everything, everything)),
        "row": ((1, everything), (1, everything)),
        "block": ((1, block), (block, block)),
    }[fp8.scaling]

    def rounded(matrix, format, group):
        return reference_rounding(matrix, format, group, fp8.power_of_two_scales)

    stored = rounded(x, fp8.format, tile)
    output = stored.astype(float) @ rounded(weight, fp8.format, square).T.astype(float)
    left = rounded(gradient, fp8.gradient_format, square if fp8.square_gradient_blocks else tile)
    # Transposed, so that groups lie along the contraction, which is the outputs here.
    right = rounded(weight.T, fp8.format, square)
    input_gradient = left.astype(float) @ right.T.astype(float)
    left = rounded(gradient.T, fp8.gradient_format, tile)
    right = stored.T if fp8.scaling == "tensor" else rounded(stored.T, fp8.format, tile)
    return output, input_gradient, left.astype(float) @ right.T.astype(float)


def operands(tokens, inputs, outputs, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    # Rows and columns of different size, as outliers make them.
    x = normal(*tokens, inputs) * normal(inputs).exp()
    gradient = normal(*tokens, outputs) * normal(*tokens, 1).exp()
    return x, normal(outputs, inputs) * normal(outputs, 1).exp(), gradient


def run(x, weight, gradient, fp8):
    """Return output, input gradient and weight gradient of `project`."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    output = project(x, weight, fp8)
    output.backward(gradient.to(output.dtype))
    return output.detach(), x.grad, weight.grad


def matrices(*tensors):
    return [tensor.reshape(-1, tensor.shape[-1]).cpu().numpy() for tensor in tensors]


def assert_near(actual, expected, tolerance):
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error < tolerance, f"relative Frobenius error {error}"


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


# --- the three products ---------------------------------------------------------------------------


@pytest.mark.parametrize("gradient_format", ["e4m3", "e5m2"])
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_all_three_products_equal_the_reference(shape, scaling, power_of_two, gradient_format):
    fp8 = Fp8(scaling=scaling, block_size=32, gradient_format=gradient_format,
              power_of_two_scales=power_of_two)  # fmt: skip
    tensors = operands(*shape)
    results = run(*tensors, fp8)
    for tensor, like in zip(results, (tensors[2], *tensors[:2]), strict=True):
        assert tensor.shape == like.shape
    expected = reference_linear(*matrices(*tensors), fp8)
    for actual, reference in zip(matrices(*results), expected, strict=True):
        # The same rounded operands; only sums are in float32 instead of float64.
        assert_near(actual, reference, 1e-6)


def test_square_gradient_blocks_equal_the_reference():
    fp8 = Fp8(block_size=32, square_gradient_blocks=True)
    tensors = operands((70,), 64, 96)
    expected = reference_linear(*matrices(*tensors), fp8)
    for actual, reference in zip(matrices(*run(*tensors, fp8)), expected, strict=True):
        assert_near(actual, reference, 1e-6)


@given(
    scaling=st.sampled_from(SCALINGS),
    formats=st.sampled_from([("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e5m2")]),
    square=st.booleans(),
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    seed=st.integers(0, 1000),
)
def test_representable_operands_are_multiplied_exactly(scaling, formats, square, shape, seed):
    fp8 = Fp8(scaling=scaling, block_size=16, format=formats[0], gradient_format=formats[1],
              power_of_two_scales=True,
              square_gradient_blocks=square and scaling == "block")  # fmt: skip
    tokens, inputs, outputs = shape
    generator = torch.Generator().manual_seed(seed)

    def integers(*sides):
        # Three significant bits, which both formats have.
        return torch.randint(-4, 5, sides, generator=generator).float()

    x, weight, gradient = (
        integers(tokens, inputs),
        integers(outputs, inputs) / 8,
        64 * integers(tokens, outputs),
    )
    output, x_gradient, weight_gradient = run(x, weight, gradient, fp8)
    assert output.double().equal(x.double() @ weight.double().T)
    assert x_gradient.double().equal(gradient.double() @ weight.double())
    assert weight_gradient.double().equal(gradient.double().T @ x.double())


# Signal-to-noise ratios in dB of one Gaussian operand.
SNR = {"e4m3": 31.7, "e5m2": 25.8}


@pytest.mark.parametrize("gradient_format", ["e4m3", "e5m2"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_error_of_gaussian_products_is_that_of_their_formats(scaling, gradient_format):
    generator = torch.Generator().manual_seed(0)
    x, weight, gradient = (
        torch.randn(*sides, generator=generator) for sides in ((256, 256), (384, 256), (256, 384))
    )
    fp8 = Fp8(scaling=scaling, gradient_format=gradient_format)
    output, x_gradient, weight_gradient = run(x, weight, gradient, fp8)
    noise = {format: 10 ** (-decibels / 10) for format, decibels in SNR.items()}
    forward = math.sqrt(2 * noise["e4m3"])
    backward = math.sqrt(noise["e4m3"] + noise[gradient_format])
    assert forward < 0.05
    assert relative_error(output, x @ weight.T) == pytest.approx(forward, rel=0.05)
    assert relative_error(x_gradient, gradient @ weight) == pytest.approx(backward, rel=0.05)
    # Activations are rounded twice, unless the stored ones fit; the second scales differ little.
    twice = math.sqrt(2 * noise["e4m3"] + noise[gradient_format])
    assert 0.95 * backward < relative_error(weight_gradient, gradient.T @ x) < 1.05 * twice


def test_blocks_keep_an_outlier_channel_to_itself():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 256, generator=generator), torch.randn(32, 256, generator=generator)
    # The outlier is so large that all that shares its scale is rounded to zero, and the weights
    # ignore it.
    x[:, 7] = 1e7
    weight[:, 7] = 0
    exact = x @ weight.T
    errors = {
        scaling: relative_error(project(x, weight, Fp8(scaling=scaling, block_size=32)), exact)
        for scaling in SCALINGS
    }
    assert errors["tensor"] == pytest.approx(1, abs=0.01)
    assert errors["row"] == pytest.approx(1, abs=0.01)
    # One block of eight is lost.
    assert errors["block"] == pytest.approx(math.sqrt(1 / 8), rel=0.1)


def test_square_gradient_blocks_lose_the_tokens_beside_an_outlier():
    """The published bad case (DeepSeek-V3, appendix B.2); only the input gradient differs."""
    x, weight, _ = operands((128,), 64, 96)
    gradient = torch.randn(128, 96, generator=torch.Generator().manual_seed(1))
    gradient[::32] *= 1e6
    ordinary = torch.arange(128) % 32 != 0
    exact = (gradient @ weight)[ordinary]
    tiles = run(x, weight, gradient, Fp8(block_size=32))
    square = run(x, weight, gradient, Fp8(block_size=32, square_gradient_blocks=True))
    assert relative_error(tiles[1][ordinary], exact) < 0.05
    assert relative_error(square[1][ordinary], exact) == pytest.approx(1, abs=0.01)
    assert square[0].equal(tiles[0])
    assert square[2].equal(tiles[2])


# --- as a module of a training run ----------------------------------------------------------------


@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast_changes_the_type_of_the_result_and_nothing_else(backward_inside):
    fp8 = Fp8(block_size=32)
    x, weight, gradient = operands((48,), 64, 96)
    gradient = gradient.bfloat16()
    expected = run(x, weight, gradient, fp8)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = project(x, weight, fp8)
        if backward_inside:
            output.backward(gradient)
    if not backward_inside:
        output.backward(gradient)
    assert output.dtype == torch.bfloat16
    assert output.equal(expected[0].bfloat16())
    assert x.grad.equal(expected[1])
    assert weight.grad.dtype == torch.float32
    assert weight.grad.equal(expected[2])


def test_bfloat16_activations_give_bfloat16_results_and_float32_weight_gradients():
    x, weight, gradient = operands((48,), 64, 96)
    x = x.bfloat16()
    output, x_gradient, weight_gradient = run(x, weight, gradient, Fp8(block_size=32))
    types = (output.dtype, x_gradient.dtype, weight_gradient.dtype)
    assert types == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_gradients_of_two_uses_add_up_and_the_bias_is_added():
    fp8 = Fp8(block_size=32)
    layer = Linear(64, 96, bias=True, fp8=fp8)
    first, _, first_gradient = operands((40,), 64, 96)
    second, _, second_gradient = operands((2, 9), 64, 96, seed=1)
    outputs = layer(first), layer(second)
    torch.autograd.backward(outputs, (first_gradient, second_gradient))
    one = run(first, layer.weight.detach(), first_gradient, fp8)
    other = run(second, layer.weight.detach(), second_gradient, fp8)
    assert outputs[0].equal(one[0] + layer.bias)
    assert outputs[1].equal(other[0] + layer.bias)
    torch.testing.assert_close(layer.weight.grad, one[2] + other[2])
    torch.testing.assert_close(layer.bias.grad, first_gradient.sum(0) + second_gradient.sum((0, 1)))


def test_only_fp8_activations_are_kept_for_the_backward_pass():
    leaf, weight, _ = operands((64,), 64, 96)
    x = leaf.requires_grad_() * 1
    weight.requires_grad_()
    size, kept = x.numel(), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda packed: packed):
        output = project(x, weight, Fp8(block_size=32))
    own = [tensor for tensor in kept if tensor.data_ptr() != weight.data_ptr()]
    # One byte per value and four per tile of 32.
    assert sum(tensor.nbytes for tensor in own) == size + 4 * size // 32
    activations = weakref.ref(x)
    del x
    assert output.requires_grad
    assert activations() is None


@pytest.mark.parametrize("scaling", SCALINGS)
def test_zeros_give_zeros_and_no_tokens_give_none(scaling):
    fp8 = Fp8(scaling=scaling, block_size=32)
    _, weight, _ = operands((1,), 64, 96)
    for tokens in (40, 0):
        for gradient in (torch.zeros(tokens, 96), torch.ones(tokens, 96)):
            output, _, weight_gradient = run(torch.zeros(tokens, 64), weight, gradient, fp8)
            assert output.shape == (tokens, 96)
            assert not output.any()
            assert not weight_gradient.any()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_divergence_shows(scaling, value):
    """Neither infinity nor NaN saturates to a harmless number."""
    x, weight, gradient = operands((40,), 64, 96)
    x[3, 5] = value
    output, _, weight_gradient = run(x, weight, gradient, Fp8(scaling=scaling, block_size=32))
    assert not output[3].isfinite().any()
    assert not weight_gradient[:, 5].isfinite().any()


# --- what runs in FP8 -----------------------------------------------------------------------------

LATENT = {"kind": "mla", "num_attention_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32,
          "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}  # fmt: skip
GROUPED = {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2}
DENSE = {"kind": "swiglu", "intermediate_size": 160}
EXPERTS = {"kind": "moe", "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
           "moe_intermediate_size": 64}  # fmt: skip


def decoder(attention, feed_forward):
    spec = {
        "family": "decoder",
        "hidden_size": 128,
        "num_hidden_layers": 1,
        "attention": attention,
        "feed_forward": feed_forward,
        "linear": {"scaling": "block", "block_size": 32},
    }
    torch.manual_seed(0)
    return build_model(validate(ModelSpec, spec, "test"), vocab_size=61)


QUERY_KEY_VALUE_OUTPUT = [f"attention.{name}" for name in ("query", "key", "value", "output")]


@pytest.mark.parametrize(
    ("feed_forward", "names"),
    [
        (DENSE, ["gate", "up", "down"]),
        (EXPERTS, ["gate", "up", "down", "shared.gate", "shared.up", "shared.down"]),
    ],
)
def test_layers_of_a_decoder_are_listed_by_name(feed_forward, names):
    layers = QUERY_KEY_VALUE_OUTPUT + [f"feed_forward.{name}" for name in names]
    assert fp8_layers(decoder(GROUPED, feed_forward)) == [f"blocks.0.{name}" for name in layers]
    assert fp8_layers(Linear(8, 8)) == []


@pytest.mark.parametrize(
    ("attention", "feed_forward", "more"),
    [
        (GROUPED, DENSE, set()),
        (GROUPED, EXPERTS, {"blocks.0.feed_forward.router.weight"}),
        # The projection of the shared rotary key is narrower than a block of 128 and stays, too.
        (LATENT, DENSE, set()),
    ],
)
def test_all_but_the_published_exceptions_run_in_fp8(attention, feed_forward, more, monkeypatch):
    """Embedding, head, norms and routing stay, and so do attention's products (V3 report, 3.3)."""
    model = decoder(attention, feed_forward)
    weights = {
        parameter.untyped_storage().data_ptr(): name for name, parameter in model.named_parameters()
    }
    ran = set()
    apply = Fp8Product.apply

    def spy(x, weight, fp8):
        # Every product in FP8 has a weight, so none is one of queries with keys or values.
        ran.add(weights[weight.untyped_storage().data_ptr()])
        return apply(x, weight, fp8)

    monkeypatch.setattr(Fp8Product, "apply", spy)
    tokens = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(0))
    model.loss(tokens, tokens).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert {name.removesuffix(".weight") for name in ran} == set(fp8_layers(model))
    norms = {name for name in weights.values() if re.search(r"norm\.weight$", name)}
    assert set(weights.values()) - ran == {"embedding.weight", "head.weight"} | norms | more
