"""The specification of the decoder that a `config.json` describes."""

from collections.abc import Collection, Mapping
from typing import Any

from harness.config.base import validate
from harness.config.decoder_schema import DecoderSpec, MixtureOfExperts, MultiHeadLatentAttention
from harness.config.yaml_file import merge
from harness.errors import UserError, closest
from harness.interchange.published import (
    ARCHITECTURES,
    TRAINING_KEY,
    AnyPublished,
    Deepseek,
    DeepseekV2,
    Glm4Moe,
    Llama,
    PublishedConfig,
    Qwen2,
    WithExperts,
)


def read_config(data: Mapping[str, Any], tensors: Collection[str], where: str) -> DecoderSpec:
    """Return the specification of the decoder that a `config.json` describes.

    Args:
        data: Content of the file.
        tensors: Names of the weights: a configuration may count modules of multi-token prediction
            that they lack.
        where: Start of messages.

    Raises:
        UserError: If the architecture or one of its options is not one that the harness has.
    """
    architecture = data.get("model_type")
    if architecture not in ARCHITECTURES:
        hint = closest(str(architecture), ARCHITECTURES)
        raise UserError(f"{where}: model_type: found '{architecture}'{hint}")
    config: PublishedConfig = validate(AnyPublished, dict(data), where)
    spec = {
        "family": "decoder",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "attention": _attention(config),
        "feed_forward": _feed_forward(config),
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
    }
    if depth := _prediction_depth(tensors, config.num_hidden_layers):
        spec["prediction"] = {"depth": depth}
    return validate(DecoderSpec, merge(spec, data.get(TRAINING_KEY, {})), where)


def _attention(config: PublishedConfig) -> dict[str, Any]:
    if isinstance(config, Deepseek):
        keys = MultiHeadLatentAttention.model_fields.keys() - {"kind"}
        return {"kind": "mla", **config.model_dump(include=set(keys))}
    assert isinstance(config, Llama | Qwen2 | Glm4Moe)
    implied = config.hidden_size / config.num_attention_heads
    return {
        "kind": "gqa",
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads or config.num_attention_heads,
        "head_dim": None if config.head_dim == implied else config.head_dim,
        "attention_bias": isinstance(config, Qwen2) or config.attention_bias,
    }


def _feed_forward(config: PublishedConfig) -> dict[str, Any]:
    dense = {"kind": "swiglu", "intermediate_size": config.intermediate_size}
    if not isinstance(config, WithExperts):
        return dense
    if config.first_k_dense_replace >= config.num_hidden_layers:
        return dense
    keys = MixtureOfExperts.model_fields.keys() - {"kind", "intermediate_size"}
    moe = {"kind": "moe", **config.model_dump(include=set(keys), exclude_none=True)}
    if config.first_k_dense_replace:
        moe["intermediate_size"] = config.intermediate_size
    if isinstance(config, DeepseekV2):
        moe["group_score"] = "max"
        if config.topk_method == "greedy":
            moe |= {"n_group": 1, "topk_group": 1}
    return moe


def _prediction_depth(tensors: Collection[str], layers: int) -> int:
    depth = 0
    while f"model.layers.{layers + depth}.eh_proj.weight" in tensors:
        depth += 1
    return depth
