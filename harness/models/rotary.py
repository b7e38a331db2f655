"""Rotary positions (Su et al., arXiv 2104.09864) in the two layouts that models use.

Shape suffixes: B batch, N heads, T positions, R rotated width.
"""

import torch
from torch import Tensor

# Cosine and sine of the angle of every position and channel (T x R each).
Rotation = tuple[Tensor, Tensor]


def rotary_angles(
    start: int, length: int, width: int, theta: float, device: torch.device
) -> Rotation:
    """Return cosine and sine (T x R) for ``length`` positions from ``start``."""
    exponent = torch.arange(0, width, 2, device=device).float() / width
    positions_T = torch.arange(start, start + length, device=device).float()
    angle_TR = torch.outer(positions_T, 1 / theta**exponent).repeat(1, 2)
    return angle_TR.cos(), angle_TR.sin()


def rotate(x_BNTR: Tensor, rotation: Rotation) -> Tensor:
    """Return ``x_BNTR`` with its halves rotated against each other: Llama's layout."""
    cosine_TR, sine_TR = (part.to(x_BNTR.dtype) for part in rotation)
    first, second = x_BNTR.chunk(2, dim=-1)
    return x_BNTR * cosine_TR + torch.cat((-second, first), dim=-1) * sine_TR


def rotate_pairs(x_BNTR: Tensor, rotation: Rotation) -> Tensor:
    """Return ``x_BNTR`` with neighbouring channels rotated: DeepSeek's layout.

    The result has its halves where pairs were, which is the same for every scalar product of two
    rotated vectors.
    """
    halves_BNTR = torch.cat((x_BNTR[..., 0::2], x_BNTR[..., 1::2]), dim=-1)
    return rotate(halves_BNTR, rotation)
