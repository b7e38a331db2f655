"""Preallocated memory of what attention has seen, for decoding token by token.

Shape suffixes: B batch, K heads, T new positions, S filled positions, C capacity, W width.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from harness.config.decoder_schema import DecoderSpec, GroupedQueryAttention

# How latent attention is cached: expanded keys and values, or the latent that makes them.
CacheForm = Literal["naive", "absorbed"]


@dataclass
class Cache:
    """What every layer remembers of the positions so far.

    Attributes:
        layers: Per layer, the tensors of its attention by name (B x K x C x W each).
        length: Filled positions, the same for all sequences. Setting it lower forgets the rest.
        capacity: Positions that fit.
    """

    layers: list[dict[str, Tensor]]
    capacity: int
    length: int = field(default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.values())


def make_layer_cache(
    spec: DecoderSpec,
    batch_size: int,
    capacity: int,
    form: CacheForm,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return the tensors of one layer by name (B x K x C x W), their entries undefined.

    Grouped-query attention keeps keys and values whatever the form. Latent attention keeps those
    of every head (naive), or the normalised latent and behind it the rotated key that all heads
    share (absorbed), as in the two modes of DeepSeek-V3's inference code.
    """
    attention = spec.attention
    if isinstance(attention, GroupedQueryAttention):
        groups = attention.num_key_value_heads
        shapes = {"key": (groups, spec.head_dim), "value": (groups, spec.head_dim)}
    elif form == "naive":
        heads = attention.num_attention_heads
        shapes = {"key": (heads, spec.head_dim), "value": (heads, attention.v_head_dim)}
    else:
        shapes = {"latent": (1, attention.kv_lora_rank + attention.qk_rope_head_dim)}
    return {
        name: torch.empty(batch_size, heads, capacity, width, dtype=dtype, device=device)
        for name, (heads, width) in shapes.items()
    }


def store(memory_BKCW: Tensor, new_BKTW: Tensor, start: int) -> Tensor:
    """Write new positions from ``start`` on and return all up to the last of them (B x K x S x W).

    The result is a view of ``memory_BKCW`` unless that has another type than the new positions.
    """
    end, capacity = start + new_BKTW.shape[2], memory_BKCW.shape[2]
    assert end <= capacity, f"the cache holds {capacity} positions, the input ends at {end}"
    memory_BKCW[:, :, start:end] = new_BKTW
    return memory_BKCW[:, :, :end].to(new_BKTW.dtype)
