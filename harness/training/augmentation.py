"""Random flips, shifts and cutouts of whole batches, on the device that holds the images.

Shape suffixes: N images, C channels, H height, W width, K classes.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Views = Literal["image", "mirror", "mirror_translate"]


def augment(
    images: Tensor,
    spec: Mapping[str, Any],
    generator: torch.Generator,
    mirrored_N: Tensor | None = None,
) -> Tensor:
    """Return augmented copies of normalised images.

    Args:
        images: N x C x H x W, zero is the mean colour.
        spec: ``flip`` (bool or "alternate"), ``translate`` (pixels), ``cutout`` (pixels).
        generator: Source of randomness, on the device of ``images``.
        mirrored_N: Which images are mirrored, for ``flip: alternate``.
    """
    count = len(images)
    if spec["flip"] is True:
        mirrored_N = torch.rand(count, device=images.device, generator=generator) < 0.5
    if mirrored_N is not None:
        images = torch.where(mirrored_N.view(-1, 1, 1, 1), images.flip(-1), images)
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


def averaged_logits(model: Callable[[Tensor], Tensor], images_NCHW: Tensor, views: Views) -> Tensor:
    """Return logits (N x K), averaged over views of the images (Jordan, 2404.00498, section 3.5).

    Args:
        model: From images to logits.
        images_NCHW: Normalised.
        views: The image alone, or with its mirror image, or of both half the weight for themselves
            and half for their shifts by one pixel up and left, and down and right.
    """
    if views == "image":
        return model(images_NCHW).float()

    def both(pixels_NCHW: Tensor) -> Tensor:
        return (model(pixels_NCHW).float() + model(pixels_NCHW.flip(-1)).float()) / 2

    logits_NK = both(images_NCHW)
    if views == "mirror_translate":
        padded = F.pad(images_NCHW, (1,) * 4, "reflect")
        shifted = both(padded[..., :-2, :-2]) + both(padded[..., 2:, 2:])
        logits_NK = (logits_NK + shifted / 2) / 2
    return logits_NK
