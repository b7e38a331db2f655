"""The three products of a linear layer in FP8 (DeepSeek-V3, arXiv 2412.19437, section 3.3).

Every product is ``left @ right.T`` of two quantised matrices whose last dimension is contracted:

- forward, activations (T x I) and weights (O x I);
- input gradient, output gradients (T x O) and transposed weights (I x O);
- weight gradient, transposed output gradients (O x T) and transposed activations (I x T).

Scales come from the current maxima. Sums are in float32. What is stored of the activations for the
backward pass is in FP8, too: the weight gradient needs tiles along the tokens, so it is read back,
transposed and quantised again (section 3.5.2).

Shape suffixes: T tokens, I input features, O output features; M and N rows of a product's two
operands, K their contracted dimension.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import ScalingType

from harness.config.decoder_schema import Fp8
from harness.numerics.formats import FORMATS
from harness.numerics.scaling import Granularity, Quantized, dequantize, quantize

Backend = Literal["hardware", "emulated"]

# What the FP8 products of cuBLAS need: sides that fill 16 bytes, tiles and blocks of 128, and four
# scales in a row.
ALIGNMENT = 16
HARDWARE_BLOCK = 128
SCALE_ALIGNMENT = 4


def fp8_backend(fp8: Fp8, device: torch.device) -> Backend:
    """Return what computes the products: FP8 tensor cores, or float32 ones of rounded values.

    The rules are those of ``torch.nn.functional.scaled_mm`` and cuBLAS (manual, section 3.1.4). One
    scale per tensor needs compute capability 8.9; scales per row or block need Hopper, CUDA 12.9
    and E4M3, blocks also their size of 128. Two E5M2 operands cannot be multiplied.
    """
    if device.type != "cuda" or torch.version.cuda is None or fp8.format == "e5m2":
        return "emulated"
    capability = torch.cuda.get_device_capability(device)
    if fp8.scaling == "tensor":
        return "hardware" if capability >= (8, 9) else "emulated"
    cuda = tuple(int(part) for part in torch.version.cuda.split("."))
    hopper = capability[0] == 9 and cuda >= (12, 9) and fp8.gradient_format == "e4m3"
    whole = fp8.scaling == "row" or fp8.block_size == HARDWARE_BLOCK
    return "hardware" if hopper and whole else "emulated"


class Fp8Product(torch.autograd.Function):
    """``x @ weight.T`` and its gradients in FP8; ``apply(x, weight, fp8)``.

    Weights keep their type, float32 in training, and so do their gradients. The result has the type
    of autocast, else that of ``x``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, fp8: Fp8) -> Tensor:
        """Return the product (... x O) of ``x`` (... x I) and ``weight_OI``."""
        ctx.fp8, ctx.backend = fp8, fp8_backend(fp8, x.device)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        x_TI = _quantized(x.reshape(-1, x.shape[-1]), fp8.format, _tiles(fp8), fp8)
        ctx.save_for_backward(weight_OI, x_TI.values, x_TI.scales)
        ctx.group = x_TI.group
        weights = _quantized(weight_OI, fp8.format, fp8.scaling, fp8)
        y_TO = multiply(x_TI, weights, fp8, ctx.backend, _result_type(x))
        return y_TO.view(*x.shape[:-1], len(weight_OI))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of ``x`` and of the weights."""
        weight_OI, values_TI, scales = ctx.saved_tensors
        gradient_TO = gradient.reshape(-1, gradient.shape[-1])
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = _input_gradient(gradient_TO, weight_OI, ctx).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            x_TI = Quantized(values_TI, scales, ctx.group)
            weight_gradient = _weight_gradient(gradient_TO, x_TI, weight_OI.dtype, ctx)
        return x_gradient, weight_gradient, None


def _input_gradient(gradient_TO: Tensor, weight_OI: Tensor, ctx: Any) -> Tensor:
    fp8 = ctx.fp8
    # Square blocks are the published bad case: they mix tokens, whose gradients differ in size
    # (DeepSeek-V3, appendix B.2).
    granularity = fp8.scaling if fp8.square_gradient_blocks else _tiles(fp8)
    left = _quantized(gradient_TO, fp8.gradient_format, granularity, fp8)
    right = _quantized(weight_OI.mT, fp8.format, fp8.scaling, fp8)
    return multiply(left, right, fp8, ctx.backend, ctx.dtype)


def _weight_gradient(gradient_TO: Tensor, x_TI: Quantized, dtype: torch.dtype, ctx: Any) -> Tensor:
    fp8 = ctx.fp8
    left = _quantized(gradient_TO.mT, fp8.gradient_format, _tiles(fp8), fp8)
    if fp8.scaling == "tensor":
        right = Quantized(x_TI.values.mT, x_TI.scales, x_TI.group[::-1])
    else:
        right = _quantized(dequantize(x_TI).mT, fp8.format, _tiles(fp8), fp8)
    return multiply(left, right, fp8, ctx.backend, dtype)


def _tiles(fp8: Fp8) -> Granularity:
    """Return how activations and gradients are scaled; weights are by ``fp8.scaling``."""
    return "tile" if fp8.scaling == "block" else fp8.scaling


def _quantized(matrix: Tensor, format: str, granularity: Granularity, fp8: Fp8) -> Quantized:
    return quantize(matrix, FORMATS[format], granularity, fp8.block_size,
                    power_of_two=fp8.power_of_two_scales)  # fmt: skip


def _result_type(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def multiply(
    left: Quantized, right: Quantized, fp8: Fp8, backend: Backend, dtype: torch.dtype
) -> Tensor:
    """Return ``left @ right.T`` (M x N) in ``dtype``, summed in float32.

    Args:
        left: M x K, scaled along K.
        right: N x K, scaled along K.
        fp8: How the operands are scaled.
        backend: Of ``fp8_backend``.
        dtype: Of the result.
    """
    if backend == "hardware":
        return hardware_product(left, right, fp8, dtype)
    # Autocast would round the operands to its own type.
    with torch.autocast(left.values.device.type, enabled=False):
        return (dequantize(left) @ dequantize(right).mT).to(dtype)


def hardware_product(
    left: Quantized,
    right: Quantized,
    fp8: Fp8,
    dtype: torch.dtype,
    *,
    fast_accumulation: bool = False,
) -> Tensor:
    """Return ``left @ right.T`` (M x N) of FP8 tensor cores.

    Args:
        left: M x K, scaled along K.
        right: N x K, scaled along K.
        fp8: How the operands are scaled.
        dtype: Of the result; bfloat16 or float32.
        fast_accumulation: Leave all sums in the tensor cores' short registers, where Hopper keeps
            13 fraction bits, instead of adding them up in float32 (DeepSeek-V3, section 3.3.2).
            Only for scales per tensor or row.
    """
    return _tensor_core_product(
        left.values, left.scales, list(left.group),
        right.values, right.scales, list(right.group),
        fp8.scaling, dtype, fast_accumulation,
    )  # fmt: skip


# One operator for the compiler: it cannot trace `scaled_mm` before torch 2.13, and what it fuses
# around the product must not change the order in memory that tensor cores need.
@torch.library.custom_op("optrepro::fp8_product", mutates_args=())
def _tensor_core_product(
    left_MK: Tensor, left_scales: Tensor, left_group: list[int],
    right_NK: Tensor, right_scales: Tensor, right_group: list[int],
    scaling: str, dtype: torch.dtype, fast_accumulation: bool,
) -> Tensor:  # fmt: skip
    left = _by_row(Quantized(left_MK, left_scales, (left_group[0], left_group[1])), scaling)
    right = Quantized(right_NK, right_scales, (right_group[0], right_group[1]))
    scales, left_recipe = _scales(left, scaling)
    other_scales, right_recipe = _scales(right, scaling)
    product_MN = F.scaled_mm(
        _values(left, scaling),
        _values(right, scaling).mT,
        scales,
        left_recipe,
        other_scales.mT if scaling == "row" else other_scales,
        right_recipe,
        output_dtype=dtype,
        use_fast_accum=fast_accumulation,
    )
    return product_MN[: len(left_MK), : len(right_NK)].contiguous()


@_tensor_core_product.register_fake
def _(
    left_MK: Tensor, left_scales: Tensor, left_group: list[int],
    right_NK: Tensor, right_scales: Tensor, right_group: list[int],
    scaling: str, dtype: torch.dtype, fast_accumulation: bool,
) -> Tensor:  # fmt: skip
    return left_MK.new_empty((left_MK.shape[0], right_NK.shape[0]), dtype=dtype)


def _by_row(left: Quantized, scaling: str) -> Quantized:
    """Return square blocks as tiles of equal scales: no product takes blocks on both sides."""
    if scaling != "block":
        return left
    height, width = left.group
    scales = left.scales.repeat_interleave(height, dim=0)[: len(left.values)]
    return Quantized(left.values, scales, (1, width))


def _values(operand: Quantized, scaling: str) -> Tensor:
    """Return the values in row-major order, filled up with zeros to whole groups and 16 bytes."""
    rows, columns = operand.values.shape
    group = operand.group if scaling == "block" else (1, 1)
    height, width = (max(side, ALIGNMENT) for side in group)
    # Padding is not implemented for FP8 types; a zero byte is a zero in both.
    padded = F.pad(operand.values.view(torch.uint8), (0, -columns % width, 0, -rows % height))
    return padded.contiguous().view(operand.values.dtype)


def _scales(operand: Quantized, scaling: str) -> tuple[Tensor, ScalingType]:
    """Return the scales as `scaled_mm` takes them, for filled-up values, and its name for them.

    One for the tensor, one per row (M x 1), per tile (M x K / 128, those of a column adjacent in
    memory) or per block (K / 128 filled up to fours x M / 128, those along K adjacent).
    """
    if scaling == "tensor":
        return operand.scales, ScalingType.TensorWise
    if operand.group[0] > 1:
        filled = F.pad(operand.scales, (0, -operand.scales.shape[1] % SCALE_ALIGNMENT))
        return filled.contiguous().mT, ScalingType.BlockWise128x128
    filled = F.pad(operand.scales, (0, 0, 0, -len(operand.values) % ALIGNMENT), value=1.0)
    if scaling == "row":
        return filled, ScalingType.RowWise
    return filled.mT.contiguous().mT, ScalingType.BlockWise1x128
