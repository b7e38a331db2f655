"""What FP8 tensor cores are given, checked where there are none.

The product is replaced by a reference that holds its operands against the rules of torch and cuBLAS
and multiplies in float64, or by torch's own for CPUs.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import ScalingType

from harness.config.decoder_schema import Fp8
from harness.models import fp8 as fp8_module
from harness.models.fp8 import fp8_backend
from harness.models.linear import project
from tests.models.test_fp8 import assert_near, matrices, operands, reference_linear, run

GPU, CPU = torch.device("cuda"), torch.device("cpu")
T, R, V, B = (ScalingType.TensorWise, ScalingType.RowWise, ScalingType.BlockWise1x128,
              ScalingType.BlockWise128x128)  # fmt: skip
torch_scaled_mm = F.scaled_mm


@pytest.mark.parametrize(
    ("fp8", "capability", "cuda", "expected"),
    [
        ({"scaling": "tensor"}, (8, 9), "12.6", "hardware"),
        ({"scaling": "tensor", "gradient_format": "e5m2"}, (10, 0), "12.8", "hardware"),
        ({"scaling": "tensor"}, (8, 0), "12.9", "emulated"),
        ({"scaling": "tensor", "format": "e5m2"}, (9, 0), "12.9", "emulated"),
        ({"scaling": "row"}, (9, 0), "12.9", "hardware"),
        ({"scaling": "row"}, (8, 9), "13.0", "emulated"),
        ({"scaling": "row", "gradient_format": "e5m2"}, (9, 0), "12.9", "emulated"),
        ({}, (9, 0), "13.0", "hardware"),
        ({"square_gradient_blocks": True}, (9, 0), "12.10", "hardware"),
        ({}, (9, 0), "12.8", "emulated"),
        ({}, (10, 0), "13.0", "emulated"),
        ({"block_size": 32}, (9, 0), "13.0", "emulated"),
        ({"gradient_format": "e5m2"}, (9, 0), "13.0", "emulated"),
        ({"scaling": "tensor"}, (9, 0), None, "emulated"),
    ],
)
def test_the_backend_follows_recipe_device_and_cuda(fp8, capability, cuda, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert fp8_backend(Fp8(**fp8), GPU) == expected
    assert fp8_backend(Fp8(**fp8), CPU) == "emulated"


def check_layout(a, b, scale_a, recipe_a, scale_b, recipe_b):
    """What the cuBLAS manual asks for, section 3.1.4.5 and the type table of `cublasLtMatmul`."""
    (rows, inner), (same, columns) = a.shape, b.shape
    assert same == inner
    assert rows % 16 == inner % 16 == columns % 16 == 0
    assert a.stride() == (inner, 1)
    assert b.stride() == (1, inner)
    assert {a.dtype, b.dtype} <= {torch.float8_e4m3fn, torch.float8_e5m2}
    assert not a.dtype == b.dtype == torch.float8_e5m2
    assert scale_a.dtype == scale_b.dtype == torch.float32
    # torch's own rules for CUDA tensors, which need no GPU to be checked.
    with FakeTensorMode():
        fakes = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda:0")
            for t in (a, b, scale_a, scale_b)
        ]
        torch_scaled_mm(*fakes[:3], recipe_a, fakes[3], recipe_b, output_dtype=torch.float32)


def expanded(scale, recipe, rows, inner):
    """Return the scale of every value of an operand (rows x inner)."""
    if recipe == ScalingType.TensorWise:
        assert scale.numel() == 1
        return scale.expand(rows, inner)
    if recipe == ScalingType.RowWise:
        return scale.reshape(rows, 1).expand(rows, inner)
    assert inner % 128 == 0
    if recipe == ScalingType.BlockWise1x128:
        assert scale.shape == (rows, inner // 128)
        assert scale.stride(0) == 1
        return scale.repeat_interleave(128, dim=1)
    assert recipe == ScalingType.BlockWise128x128
    fours = math.ceil(inner / 128 / 4) * 4
    assert scale.shape == (fours, math.ceil(rows / 128))
    assert scale.stride(0) == 1
    assert scale.stride(1) == fours
    whole = scale[: inner // 128].mT
    return whole.repeat_interleave(128, 1).repeat_interleave(128, 0)[:rows]


@pytest.fixture
def tensor_cores(monkeypatch):
    """Take the hardware's path with a reference of its product; return what was asked of it."""
    calls = []

    def reference(a, b, scale_a, recipe_a, scale_b, recipe_b, *, output_dtype, use_fast_accum):
        check_layout(a, b, scale_a, recipe_a, scale_b, recipe_b)
        calls.append((recipe_a, recipe_b, a.dtype, output_dtype, use_fast_accum))
        left = a.double() * expanded(scale_a, recipe_a, *a.shape)
        right = b.T.double() * expanded(scale_b, recipe_b, *b.T.shape)
        return (left @ right.T).to(output_dtype)

    monkeypatch.setattr(fp8_module, "fp8_backend", lambda fp8, device: "hardware")
    monkeypatch.setattr(F, "scaled_mm", reference)
    return calls


@pytest.mark.parametrize(
    ("fp8", "recipes"),
    [
        (Fp8(scaling="tensor"), [(T, T), (T, T), (T, T)]),
        (Fp8(scaling="tensor", gradient_format="e5m2"), [(T, T), (T, T), (T, T)]),
        (Fp8(scaling="row"), [(R, R), (R, R), (R, R)]),
        (Fp8(), [(V, B), (V, B), (V, V)]),
        (Fp8(power_of_two_scales=True), [(V, B), (V, B), (V, V)]),
        (Fp8(square_gradient_blocks=True), [(V, B), (V, B), (V, V)]),
    ],
)
# Whole blocks, ragged tokens, and features that fill neither blocks nor 16 bytes.
@pytest.mark.parametrize("shape", [((256,), 640, 128), ((2, 69), 128, 256), ((7,), 200, 72)])
def test_operands_for_tensor_cores_give_the_same_products(fp8, recipes, shape, tensor_cores):
    tensors = operands(*shape)
    actual = run(*tensors, fp8)
    assert [(left, right) for left, right, *_ in tensor_cores] == recipes
    gradient_type = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[fp8.gradient_format]
    assert [call[2] for call in tensor_cores] == [torch.float8_e4m3fn, gradient_type, gradient_type]
    assert not any(fast for *_, fast in tensor_cores)
    expected = reference_linear(*matrices(*tensors), fp8)
    for result, reference in zip(matrices(*actual), expected, strict=True):
        assert_near(result, reference, 1e-6)


def test_tensor_cores_write_the_type_of_the_run(tensor_cores):
    x, weight, gradient = operands((256,), 128, 128)
    run(x.bfloat16(), weight, gradient, Fp8())
    assert [call[3] for call in tensor_cores] == [torch.bfloat16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("scaling", ["tensor", "row"])
def test_torch_multiplies_these_operands_on_a_cpu(scaling, monkeypatch):
    """Torch has `scaled_mm` for one scale per tensor or row on CPUs, too."""
    fp8, tensors = Fp8(scaling=scaling), operands((30,), 40, 72)
    expected = run(*tensors, fp8)
    monkeypatch.setattr(fp8_module, "fp8_backend", lambda fp8, device: "hardware")
    try:
        actual = run(*tensors, fp8)
    except NotImplementedError:
        pytest.skip("this torch multiplies FP8 on GPUs only")
    for result, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("scaling", ["tensor", "row", "block"])
def test_tensor_cores_and_their_emulation_agree(scaling, monkeypatch):
    fp8, tensors = Fp8(scaling=scaling), [part.cuda() for part in operands((2, 150), 640, 384)]
    if fp8_backend(fp8, GPU) == "emulated":
        pytest.skip(f"this GPU and CUDA have no FP8 products with one scale per {scaling}")
    actual = run(*tensors, fp8)
    monkeypatch.setattr(fp8_module, "fp8_backend", lambda fp8, device: "emulated")
    expected = run(*tensors, fp8)
    for result, reference in zip(matrices(*actual), matrices(*expected), strict=True):
        # 13 fraction bits within a tensor core.
        assert_near(result, reference, 2e-3)


@pytest.mark.parametrize("fp8", [Fp8(scaling="tensor"), Fp8(scaling="row"), Fp8()])
def test_compiled_layers_are_whole_and_give_tensor_cores_the_same(fp8, tensor_cores):
    x, weight, gradient = operands((69,), 200, 72)

    def branch(x, weight):
        return F.silu(project(x.tanh(), weight, fp8))

    def results(function):
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = function(*leaves)
        y.backward(gradient)
        return [y.detach(), *(leaf.grad for leaf in leaves)]

    expected = results(branch)
    asked = tensor_cores.copy()
    tensor_cores.clear()
    torch.compiler.reset()
    found = results(torch.compile(branch, backend="aot_eager", fullgraph=True))
    torch.compiler.reset()
    assert tensor_cores == asked
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
