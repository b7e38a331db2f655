"""Parameters of a decoder by closed form, part by part.

Every formula is a product of layer widths; those of latent attention and of the experts are the
matrices of DeepSeek-V3 (arXiv 2412.19437, sections 2.1 and 2.2).
"""

from dataclasses import dataclass
from typing import Literal

from harness.config.decoder_schema import (
    DecoderSpec,
    GroupedQueryAttention,
    MixtureOfExperts,
    SwiGLU,
)

Part = Literal[
    "embedding", "attention", "dense", "experts", "shared_experts", "router", "norms", "head",
    "prediction",
]  # fmt: skip


@dataclass(frozen=True)
class Count:
    """Parameters of a part, or of a model.

    Attributes:
        total: All that are stored.
        active: Those that the pass of one token uses; an embedding is looked up, not used whole.
        matrices: Those of the active ones that matrix products read: no norms, no biases.
    """

    total: int
    active: int
    matrices: int

    def __add__(self, other: "Count") -> "Count":
        """Return the sum, field by field."""
        return Count(self.total + other.total, self.active + other.active,
                     self.matrices + other.matrices)  # fmt: skip

    def __mul__(self, times: int) -> "Count":
        """Return the count of ``times`` equal parts."""
        return Count(self.total * times, self.active * times, self.matrices * times)


NOTHING = Count(0, 0, 0)


def count_parameters(spec: DecoderSpec, vocab_size: int | None = None) -> dict[Part, Count]:
    """Return the parameters of every part of a decoder.

    A head that shares its weights with the embedding adds nothing to the total, but is active.
    ``prediction`` is what the modules of multi-token prediction add; embedding and head are not
    theirs.

    Args:
        spec: Of the decoder.
        vocab_size: Tokens, for a decoder without a size of its own.

    Raises:
        ValueError: If neither gives a vocabulary.
    """
    tokens = spec.vocab_size if spec.vocab_size is not None else vocab_size
    if tokens is None:
        raise ValueError("vocab_size: found none, expected the tokens of the vocabulary")
    layers = range(spec.num_hidden_layers)
    parts = _sum([_block(spec, layer) for layer in layers])
    parts["norms"] += _vector(spec.hidden_size)
    table = tokens * spec.hidden_size
    tied = spec.tie_word_embeddings
    return parts | {
        "embedding": Count(table, 0, 0),
        "head": Count(0 if tied else table, table, table),
        "prediction": _prediction(spec),
    }


def total_parameters(spec: DecoderSpec, vocab_size: int | None = None) -> int:
    """Return all parameters but those of multi-token prediction, as models are named."""
    return _main(spec, vocab_size).total


def activated_parameters(spec: DecoderSpec, vocab_size: int | None = None) -> int:
    """Return the parameters that a token uses: all but input embedding and idle experts."""
    return _main(spec, vocab_size).active


def matrix_parameters(spec: DecoderSpec, vocab_size: int | None = None) -> int:
    """Return the parameters that multiply a token in matrix products, output head included."""
    return _main(spec, vocab_size).matrices


def _main(spec: DecoderSpec, vocab_size: int | None) -> Count:
    parts = count_parameters(spec, vocab_size)
    return sum((count for part, count in parts.items() if part != "prediction"), NOTHING)


def _prediction(spec: DecoderSpec) -> Count:
    """Of each module a projection of two states to one, their norms, a block and a last norm."""
    if spec.prediction is None:
        return NOTHING
    width = spec.hidden_size
    block = sum(_block(spec, spec.num_hidden_layers).values(), NOTHING)
    return (_matrix(2 * width, width) + _vector(3 * width) + block) * spec.prediction.depth


def _block(spec: DecoderSpec, layer: int) -> dict[Part, Count]:
    attention, latent_norms = _attention(spec)
    return {
        "attention": attention,
        "norms": _vector(2 * spec.hidden_size + latent_norms),
        **_feed_forward(spec, layer),
    }


def _attention(spec: DecoderSpec) -> tuple[Count, int]:
    """Return the projections of one layer and the widths of its latents that are normalised."""
    width, options = spec.hidden_size, spec.attention
    heads = options.num_attention_heads
    if isinstance(options, GroupedQueryAttention):
        queries, keys = heads * spec.head_dim, options.num_key_value_heads * spec.head_dim
        projections = _matrix(width, queries + 2 * keys) + _matrix(queries, width)
        return projections + _vector(queries + 2 * keys if options.attention_bias else 0), 0
    queries = heads * spec.head_dim
    query_rank, rank = options.q_lora_rank, options.kv_lora_rank
    query = _matrix(width, queries)
    if query_rank is not None:
        query = _matrix(width, query_rank) + _matrix(query_rank, queries)
    down = _matrix(width, rank + options.qk_rope_head_dim)
    up = _matrix(rank, heads * (options.qk_nope_head_dim + options.v_head_dim))
    output = _matrix(heads * options.v_head_dim, width)
    return query + down + up + output, rank + (query_rank or 0)


def _feed_forward(spec: DecoderSpec, layer: int) -> dict[Part, Count]:
    width, options = spec.hidden_size, spec.feed_forward_of(layer)
    if isinstance(options, SwiGLU):
        return {"dense": _matrix(3 * width, options.intermediate_size)}
    assert isinstance(options, MixtureOfExperts)
    expert = _matrix(3 * width, options.moe_intermediate_size)
    chosen = expert * options.num_experts_per_tok
    return {
        "experts": Count(expert.total * options.n_routed_experts, chosen.active, chosen.matrices),
        "shared_experts": expert * options.n_shared_experts,
        "router": _matrix(width, options.n_routed_experts),
    }


def _matrix(inputs: int, outputs: int) -> Count:
    return Count(inputs * outputs, inputs * outputs, inputs * outputs)


def _vector(width: int) -> Count:
    return Count(width, width, 0)


def _sum(blocks: list[dict[Part, Count]]) -> dict[Part, Count]:
    """Return the sum of blocks, part by part; a part that none of them has is left out."""
    parts: dict[Part, Count] = {}
    for block in blocks:
        for part, count in block.items():
            parts[part] = parts.get(part, NOTHING) + count
    return parts


# What a cache holds: keys and values of the heads that attention computes (for latent attention
# expanded, the naive form), the latent that makes them, or those of all query heads, as multi-head
# attention of the same size would.
CacheContent = Literal["heads", "latent", "multi_head"]


def cached_elements(spec: DecoderSpec, content: CacheContent) -> int:
    """Return the elements that one layer caches of one token (arXiv 2405.04434, table 1).

    Multi-head attention in place of latent attention has keys as wide as the part of the query
    without rotary positions.

    Raises:
        ValueError: If a latent is asked of attention without one.
    """
    options = spec.attention
    heads = options.num_attention_heads
    if isinstance(options, GroupedQueryAttention):
        if content == "latent":
            raise ValueError("content: found latent, expected heads or multi_head for gqa")
        kept = heads if content == "multi_head" else options.num_key_value_heads
        return 2 * kept * spec.head_dim
    if content == "latent":
        return options.kv_lora_rank + options.qk_rope_head_dim
    keys = options.qk_nope_head_dim if content == "multi_head" else spec.head_dim
    return heads * (keys + options.v_head_dim)
