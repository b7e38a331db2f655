"""Random flips, shifts and cutouts of whole batches, on the device that holds the images."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, spec: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    """Return augmented copies of normalised images.

    Args:
        images: N x C x H x W, zero is the mean colour.
        spec: ``flip`` (bool), ``translate`` (pixels), ``cutout`` (pixels).
        generator: Source of randomness, on the device of ``images``.
    """
    count = len(images)
    if spec["flip"]:
        mirrored = torch.rand(count, device=images.device, generator=generator) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    if spec["translate"]:
        images = _translate(images, spec["translate"], generator)
    if spec["cutout"]:
        images = images.masked_fill(_squares(images, spec["cutout"], generator), 0.0)
    return images


def _translate(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to ``reach`` pixels, filling with the mean colour."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (reach,) * 4)
    shift = torch.randint(2 * reach + 1, (2, count), device=images.device, generator=generator)
    rows = shift[0, :, None] + torch.arange(height, device=images.device)
    columns = shift[1, :, None] + torch.arange(width, device=images.device)
    batch = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _squares(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Return a mask (N x 1 x H x W) with one square per image, cut at the border."""
    count, _, height, width = images.shape
    centre = torch.rand(2, count, 1, device=images.device, generator=generator)
    low, high = -(side // 2), side - side // 2
    rows = torch.arange(height, device=images.device) - (centre[0] * height).floor()
    columns = torch.arange(width, device=images.device) - (centre[1] * width).floor()
    inside_rows = (rows >= low) & (rows < high)
    inside_columns = (columns >= low) & (columns < high)
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
