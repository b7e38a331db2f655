"""A small vision transformer after Beyer et al., arXiv 2205.01580."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.model_schema import VitSpec
from harness.errors import UserError


class VisionTransformer(nn.Module):
    """Patches, fixed sine-cosine positions, pre-norm blocks, average pooling and a linear head.

    Attributes:
        companion_parameters: Patterns of the parameters that are not hidden matrices.
    """

    companion_parameters = (r"^patches\.", r"^head\.")

    def __init__(self, spec: VitSpec, image_size: int, channels: int, num_classes: int) -> None:
        """Build the model.

        Raises:
            UserError: If the patch size does not divide the image size.
        """
        super().__init__()
        if image_size % spec.patch_size:
            raise UserError(f"models.yaml: patch_size: found {spec.patch_size}, expected a divisor "
                            f"of the image size {image_size}")  # fmt: skip
        width = spec.hidden_size
        self.patches = nn.Conv2d(channels, width, spec.patch_size, stride=spec.patch_size)
        positions = sine_cosine_positions(image_size // spec.patch_size, width)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(_Block(spec) for _ in range(spec.num_hidden_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B x classes) of normalised images."""
        x_BTD = self.patches(images_BCHW).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD).mean(1))


class _Block(nn.Module):
    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        width = spec.hidden_size
        self.heads = spec.num_attention_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.feed_forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, spec.intermediate_size)
        self.down = nn.Linear(spec.intermediate_size, width)
        for layer in (self.query, self.key, self.value, self.output, self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self._attend(self.attention_norm(x_BTD))
        return x_BTD + self.down(F.gelu(self.up(self.feed_forward_norm(x_BTD))))

    def _attend(self, x_BTD: Tensor) -> Tensor:
        shape = (len(x_BTD), x_BTD.shape[1], self.heads, -1)
        q, k, v = (part(x_BTD).view(shape).transpose(1, 2)
                   for part in (self.query, self.key, self.value))  # fmt: skip
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.output(mixed.transpose(1, 2).flatten(2))


def sine_cosine_positions(side: int, width: int) -> Tensor:
    """Return fixed position codes (side * side x width) of a square grid of patches."""
    frequency = 10000.0 ** (-torch.arange(width // 4) / (width // 4 - 1 or 1))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (x, y)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
