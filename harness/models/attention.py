"""Causal attention with rotary positions.

Shape suffixes: B batch, T positions, D hidden size, N query heads, K key-value heads, S positions
in the cache, H head width.
"""

from torch import Tensor, nn

from harness.config.decoder_schema import (
    DecoderSpec,
    GroupedQueryAttention,
    MultiHeadLatentAttention,
)
from harness.models.cache import store
from harness.models.causal_attention import causal_attention
from harness.models.latent_attention import LatentAttention
from harness.models.linear import Linear
from harness.models.rotary import Rotation, rotate


class GroupedAttention(nn.Module):
    """Grouped-query attention (Ainslie et al., arXiv 2305.13245)."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        options = spec.attention
        assert isinstance(options, GroupedQueryAttention)
        self.head_dim = spec.head_dim
        queries = options.num_attention_heads * self.head_dim
        keys = options.num_key_value_heads * self.head_dim
        bias = options.attention_bias
        self.query = Linear(spec.hidden_size, queries, bias=bias, fp8=spec.linear)
        self.key = Linear(spec.hidden_size, keys, bias=bias, fp8=spec.linear)
        self.value = Linear(spec.hidden_size, keys, bias=bias, fp8=spec.linear)
        self.output = Linear(queries, spec.hidden_size, fp8=spec.linear)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        layer: dict[str, Tensor] | None = None,
        start: int = 0,
        visible_B1TT: Tensor | None = None,
    ) -> Tensor:
        """Return what each position reads from itself and earlier ones (B x T x D).

        Args:
            x_BTD: States of the positions.
            rotation: Of these positions.
            layer: This layer's tensors of a cache, of which the positions before ``start`` are
                read; takes in the new ones.
            start: Position of the first state.
            visible_B1TT: Which positions each of them may read, if that is not all earlier ones.
        """
        heads = (len(x_BTD), x_BTD.shape[1], -1, self.head_dim)
        q_BNTH = rotate(self.query(x_BTD).view(heads).transpose(1, 2), rotation)
        k_BKSH = rotate(self.key(x_BTD).view(heads).transpose(1, 2), rotation)
        v_BKSH = self.value(x_BTD).view(heads).transpose(1, 2)
        if layer is not None:
            k_BKSH = store(layer["key"], k_BKSH, start)
            v_BKSH = store(layer["value"], v_BKSH, start)
        mixed_BNTH = causal_attention(q_BNTH, k_BKSH, v_BKSH, self.head_dim**-0.5, visible_B1TT)
        return self.output(mixed_BNTH.transpose(1, 2).flatten(2))


def make_attention(spec: DecoderSpec) -> GroupedAttention | LatentAttention:
    """Return the attention that ``spec`` names."""
    if isinstance(spec.attention, MultiHeadLatentAttention):
        return LatentAttention(spec)
    return GroupedAttention(spec)
