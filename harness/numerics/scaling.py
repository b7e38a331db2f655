"""Quantised matrices: groups of values share a scale that maps the largest onto the format's.

DeepSeek-V3 (section 3.3.2) scales activations by 1 x 128 tiles and weights by 128 x 128 blocks,
with scales from the current values. Nothing here has a gradient.

Legend of shape suffixes: R rows, C columns; A x B groups of G x H values.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.numerics.formats import FORMATS, FloatFormat, binade, cast, round_to_format
from harness.numerics.logfmt import round_to_logfmt

Granularity = Literal["tensor", "row", "tile", "block"]


@dataclass(frozen=True)
class Quantized:
    """A matrix as low-precision values times scales.

    Attributes:
        values: Rows x columns, in the format's torch type if it has one (what FP8 products take),
            else float32.
        scales: Float32, one per group: 1 x 1 for a tensor, rows x 1 for rows,
            rows x ceil(columns / block) for tiles, and ceil(rows / block) x
            ceil(columns / block) for blocks.
        group: Rows and columns of a group; the last ones may be cut off by the matrix's edge.
    """

    values: Tensor
    scales: Tensor
    group: tuple[int, int]


@torch.no_grad()
def quantize(
    x_RC: Tensor,
    format: FloatFormat,
    granularity: Granularity,
    block: int = 128,
    *,
    power_of_two: bool = False,
) -> Quantized:
    """Return ``x_RC`` quantised, computed in float32.

    A group with an infinity or NaN turns into NaN when dequantised. For tiles along the columns, as
    the product of a weight gradient needs them, pass the transpose.

    Args:
        x_RC: A matrix of any floating-point type.
        format: Of the values.
        granularity: One scale per tensor, row, 1 x ``block`` tile or ``block`` x ``block`` block.
        block: Side of tiles and blocks.
        power_of_two: Round scales up to powers of two (the ue8m0 scales of microscaling formats).

    Raises:
        ValueError: If ``x_RC`` is not a matrix or ``block`` is not positive.
    """
    if x_RC.ndim != 2:
        raise ValueError(f"found a tensor of shape {tuple(x_RC.shape)}, expected a matrix")
    if block < 1:
        raise ValueError(f"found a block of {block}, expected at least 1")
    rows, columns = x_RC.shape
    groups = {"tensor": (rows, columns), "row": (1, columns), "tile": (1, block),
              "block": (block, block)}  # fmt: skip
    group = groups[granularity]
    # A transpose is read several times below: one copy in order costs less.
    x_AGBH = _grouped(x_RC.float().contiguous(), group)
    scales_AB = _scales(x_AGBH.abs().amax(3).amax(1), format, power_of_two)
    values_AGBH = cast(x_AGBH / scales_AB[:, None, :, None], format)
    return Quantized(_ungrouped(values_AGBH, x_RC.shape), scales_AB, group)


@torch.no_grad()
def dequantize(quantized: Quantized, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return values times scales: rows x columns, computed in float32 and rounded to ``dtype``."""
    values_AGBH = _grouped(_widened(quantized.values), quantized.group)
    products_AGBH = values_AGBH * quantized.scales[:, None, :, None]
    return _ungrouped(products_AGBH, quantized.values.shape).to(dtype)


def fake_quantize(
    x: Tensor,
    format: FloatFormat,
    granularity: Granularity,
    block: int = 128,
    *,
    power_of_two: bool = False,
) -> Tensor:
    """Return what is left of ``x`` (... x columns) after ``quantize``, in its shape and type.

    All dimensions but the last together are the rows.
    """
    matrix = x.reshape(-1, x.shape[-1])
    quantized = quantize(matrix, format, granularity, block, power_of_two=power_of_two)
    return dequantize(quantized, x.dtype).view(x.shape)


def round_in_tiles(x: Tensor, format: str, tile: int) -> Tensor:
    """Return ``x`` (... x columns) as a message in the named format would deliver it.

    Floating-point formats narrower than bfloat16 get a scale per 1 x ``tile`` tile, LogFMT its
    range per tile.

    Args:
        x: Of any floating-point type that holds the format's values.
        format: A key of ``FORMATS``, or ``logfmt`` followed by the bits.
        tile: Neighbouring columns that share a scale; LogFMT needs whole tiles.
    """
    if format.startswith("logfmt"):
        return round_to_logfmt(x, int(format.removeprefix("logfmt")), tile)
    if format == "bfloat16":
        return round_to_format(x, FORMATS[format])
    return fake_quantize(x, FORMATS[format], "tile", tile)


def _widened(values_RC: Tensor) -> Tensor:
    """Return the values as float32."""
    if values_RC.device.type == "cpu" and values_RC.dtype.itemsize == 1:
        # Torch widens FP8 one value after the other here; looking all 256 up is five times faster.
        every = torch.arange(256, dtype=torch.uint8).view(values_RC.dtype).float()
        codes_RC = values_RC.view(torch.uint8).int()
        return every.index_select(0, codes_RC.flatten()).view(values_RC.shape)
    return values_RC.float()


def _scales(amax: Tensor, format: FloatFormat, power_of_two: bool) -> Tensor:
    """Return scales by which no value of a group exceeds the format's largest."""
    # A subnormal scale would be too coarse to keep values within the format.
    scales = (amax / format.max).clamp_min(torch.finfo(torch.float32).tiny)
    if power_of_two:
        rounded_down = binade(scales)
        scales = torch.where(scales > rounded_down, 2 * rounded_down, rounded_down)
    return torch.where(amax == 0, 1.0, scales)


def _grouped(x_RC: Tensor, group: tuple[int, int]) -> Tensor:
    """Return the matrix as A x G x B x H, filled up with zeros."""
    rows, columns = x_RC.shape
    height, width = (max(side, 1) for side in group)
    padded = F.pad(x_RC, (0, -columns % width, 0, -rows % height))
    return padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width)


def _ungrouped(x_AGBH: Tensor, shape: torch.Size) -> Tensor:
    groups_down, height, groups_across, width = x_AGBH.shape
    matrix = x_AGBH.reshape(groups_down * height, groups_across * width)
    return matrix[: shape[0], : shape[1]].contiguous()
