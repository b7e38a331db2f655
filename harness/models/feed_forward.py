"""The gated feed-forward of Llama.

Shape suffixes: B batch, T positions, D hidden size.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.decoder_schema import Fp8
from harness.models.linear import Linear


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, width: int, fp8: Fp8 | None) -> None:
        super().__init__()
        self.gate = Linear(hidden_size, width, fp8=fp8)
        self.up = Linear(hidden_size, width, fp8=fp8)
        self.down = Linear(width, hidden_size, fp8=fp8)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the transformed states (B x T x D)."""
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
