"""The matrix products of one layer of a decoder on one device, forward.

Latent attention is expanded, as in training and prefill; every device has all heads.
"""

from harness.config.decoder_schema import (
    DecoderSpec,
    GroupedQueryAttention,
    MixtureOfExperts,
    SwiGLU,
)
from harness.systems.wave_quantization import Product


def layer_products(
    spec: DecoderSpec, layer: int, tokens: int, devices: int = 1
) -> dict[str, Product]:
    """Return the products of a layer by name; products with scores are left out.

    Args:
        spec: Of the decoder.
        layer: Counted from 0.
        tokens: On the device.
        devices: That share the routed experts and send them equally many tokens each.

    Raises:
        ValueError: If the experts, or the tokens of an expert, cannot be shared evenly.
    """
    return _attention(spec, tokens) | _feed_forward(spec, layer, tokens, devices)


def _attention(spec: DecoderSpec, tokens: int) -> dict[str, Product]:
    width, options = spec.hidden_size, spec.attention
    queries = options.num_attention_heads * spec.head_dim
    if isinstance(options, GroupedQueryAttention):
        keys = options.num_key_value_heads * spec.head_dim
        return {
            "query_key_value": Product(tokens, width, queries + 2 * keys),
            "attention_output": Product(tokens, queries, width),
        }
    heads, rank, query_rank = options.num_attention_heads, options.kv_lora_rank, options.q_lora_rank
    query = {"query": Product(tokens, width, queries)}
    if query_rank is not None:
        query = {
            "query_down": Product(tokens, width, query_rank),
            "query_up": Product(tokens, query_rank, queries),
        }
    up = heads * (options.qk_nope_head_dim + options.v_head_dim)
    return query | {
        "key_value_down": Product(tokens, width, rank + options.qk_rope_head_dim),
        "key_value_up": Product(tokens, rank, up),
        "attention_output": Product(tokens, heads * options.v_head_dim, width),
    }


def _feed_forward(spec: DecoderSpec, layer: int, tokens: int, devices: int) -> dict[str, Product]:
    width, options = spec.hidden_size, spec.feed_forward_of(layer)
    if isinstance(options, SwiGLU):
        return _swiglu("dense", width, options.intermediate_size, tokens)
    assert isinstance(options, MixtureOfExperts)
    experts, inner = options.n_routed_experts, options.moe_intermediate_size
    if experts % devices:
        raise ValueError(f"devices: found {devices}, expected a divisor of the {experts} experts")
    sent = devices * tokens * options.num_experts_per_tok
    if sent % experts:
        raise ValueError(f"tokens: found {tokens}, expected a number that {devices} devices can "
                         f"share evenly among {experts} experts")  # fmt: skip
    routed = _swiglu("expert", width, inner, sent // experts, group=experts // devices)
    router = {"router": Product(tokens, width, experts)}
    if not options.n_shared_experts:
        return router | routed
    return router | _swiglu("shared", width, inner * options.n_shared_experts, tokens) | routed


def _swiglu(name: str, width: int, inner: int, tokens: int, group: int = 1) -> dict[str, Product]:
    return {
        f"{name}_gate_up": Product(tokens, width, 2 * inner, group),
        f"{name}_down": Product(tokens, inner, width, group),
    }
