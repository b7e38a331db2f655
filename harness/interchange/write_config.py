"""The `config.json` of the published architecture that computes what a decoder does.

| attention | feed-forward   | architecture                                  |
|-----------|----------------|-----------------------------------------------|
| `gqa`     | `swiglu`       | Llama                                         |
| `gqa`     | `moe`, sigmoid | GLM-4.5 (`glm4_moe`)                          |
| `mla`     | `swiglu`       | DeepSeek-V3, its dense first layers being all |
| `mla`     | `moe`, sigmoid | DeepSeek-V3                                   |
| `mla`     | `moe`, softmax | DeepSeek-V2                                   |

With biases of query, key and value the first is Qwen2, but it is written as Llama with an output
bias of zeros: for Qwen2, `transformers` 5 splits texts in Qwen2's way, whatever `tokenizer.json`
says, and the model would see other tokens than in training.
"""

from typing import Any

from harness.config.decoder_schema import (
    DecoderSpec,
    GroupedQueryAttention,
    MixtureOfExperts,
    MultiHeadLatentAttention,
    SwiGLU,
)
from harness.errors import UserError
from harness.interchange.published import (
    ARCHITECTURES,
    TRAINING_KEY,
    DeepseekV2,
    DeepseekV3,
    Glm4Moe,
    Llama,
    PublishedConfig,
    WithExperts,
)


def without_unknown_modules(spec: DecoderSpec) -> DecoderSpec:
    """Return ``spec`` without multi-token prediction if its architecture has none.

    The modules serve training and drafting and may be discarded for inference (DeepSeek-V3, section
    2.2): what the decoder computes stays the same.
    """
    moe = spec.feed_forward
    if isinstance(moe, MixtureOfExperts) and moe.scoring_func == "sigmoid":
        return spec
    return spec.model_copy(update={"prediction": None})


def write_config(spec: DecoderSpec, vocab_size: int, where: str) -> dict[str, Any]:
    """Return the `config.json` of the architecture that computes what ``spec`` does.

    Args:
        spec: Of ``without_unknown_modules``.
        vocab_size: Rows of the embedding.
        where: Start of messages.

    Raises:
        UserError: If no published architecture computes it; names the first key that none has.
    """
    if spec.combine is not None:
        raise _refusal(where, "combine", spec.combine.format, "none",
                       "no published architecture quantises its residual branches")  # fmt: skip
    shared = {
        "vocab_size": vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "initializer_range": spec.initializer_range,
        "rms_norm_eps": spec.rms_norm_eps,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.tie_word_embeddings,
    }
    config = (
        _latent(spec, shared | _latent_options(spec.attention), where)
        if isinstance(spec.attention, MultiHeadLatentAttention)
        else _grouped(spec, shared | _grouped_options(spec.attention, spec.head_dim), where)
    )
    values = config.model_dump()
    training = _training_only(spec)
    return {
        "architectures": [ARCHITECTURES[values["model_type"]]],
        **values,
        **({TRAINING_KEY: training} if training else {}),
    }


def _grouped(spec: DecoderSpec, shared: dict[str, Any], where: str) -> PublishedConfig:
    if isinstance(spec.feed_forward, MixtureOfExperts):
        moe = spec.feed_forward
        if moe.scoring_func != "sigmoid":
            raise _refusal(where, "feed_forward.scoring_func", moe.scoring_func, "sigmoid",
                           "with attention.kind gqa it is GLM-4.5, which has no other")  # fmt: skip
        _check_group_score(moe, "sum_of_top_two", where)
        return Glm4Moe(**shared, **_experts(moe), **_predicted(spec), partial_rotary_factor=1.0)
    _check_width(spec, "Llama", where)
    return Llama(**shared, intermediate_size=spec.feed_forward.intermediate_size)


def _latent(spec: DecoderSpec, shared: dict[str, Any], where: str) -> PublishedConfig:
    if isinstance(spec.feed_forward, SwiGLU):
        return DeepseekV3(**shared, **_no_experts(spec.feed_forward, spec.num_hidden_layers))
    moe = spec.feed_forward
    if moe.scoring_func == "sigmoid":
        _check_group_score(moe, "sum_of_top_two", where)
        return DeepseekV3(**shared, **_experts(moe), **_predicted(spec))
    _check_softmax(moe, where)
    _check_width(spec, "DeepseekV2", where)
    shared["topk_method"] = "greedy" if moe.n_group == 1 else "group_limited_greedy"
    return DeepseekV2(**shared, **_experts(moe))


def _grouped_options(attention: GroupedQueryAttention, head_dim: int) -> dict[str, Any]:
    return attention.model_dump(exclude={"kind"}) | {"head_dim": head_dim}


def _latent_options(attention: MultiHeadLatentAttention) -> dict[str, Any]:
    options = attention.model_dump(exclude={"kind"})
    return options | {"num_key_value_heads": attention.num_attention_heads}


def _experts(moe: MixtureOfExperts) -> dict[str, Any]:
    keys = WithExperts.model_fields.keys() & MixtureOfExperts.model_fields.keys()
    options = moe.model_dump(include=set(keys))
    # Read by nobody if there are no dense layers, but it has to be there.
    options["intermediate_size"] = moe.intermediate_size or moe.moe_intermediate_size
    return options


def _no_experts(dense: SwiGLU, num_hidden_layers: int) -> dict[str, Any]:
    """Return options of experts for a model all of whose layers are dense; the first two count."""
    return {
        "intermediate_size": dense.intermediate_size,
        "first_k_dense_replace": num_hidden_layers,
        "moe_intermediate_size": dense.intermediate_size,
        "n_routed_experts": 2,
        "n_shared_experts": 1,
        "num_experts_per_tok": 1,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
    }


def _predicted(spec: DecoderSpec) -> dict[str, Any]:
    return {"num_nextn_predict_layers": 0 if spec.prediction is None else spec.prediction.depth}


def _training_only(spec: DecoderSpec) -> dict[str, Any]:
    """Return the keys of ``spec`` that do not change what the trained weights compute.

    FP8 is among them: its weights are kept in float32, and whoever loads them computes products in
    a precision of their own.
    """
    training: dict[str, Any] = {}
    if spec.linear is not None:
        training["linear"] = spec.linear.model_dump()
    if spec.prediction is not None:
        training["prediction"] = spec.prediction.model_dump(exclude={"depth"})
    if isinstance(spec.feed_forward, MixtureOfExperts):
        # Tokens over the capacity are dropped in training only.
        training["feed_forward"] = spec.feed_forward.model_dump(
            include={"balance", "capacity_factor"}, exclude_defaults=True
        )
    return {key: value for key, value in training.items() if value}


def _check_softmax(moe: MixtureOfExperts, where: str) -> None:
    """Refuse what softmax scores go with in the harness and do not in DeepSeek-V2."""
    _check_group_score(moe, "max", where)
    if moe.norm_topk_prob:
        raise _refusal(where, "feed_forward.norm_topk_prob", True, False,
                       "with scoring_func softmax it is DeepSeek-V2, which does not "
                       "normalise")  # fmt: skip
    rate = moe.balance.bias_update_rate
    if rate:
        raise _refusal(where, "feed_forward.balance.bias_update_rate", rate, 0.0,
                       "with scoring_func softmax it is DeepSeek-V2, which has no routing "
                       "bias")  # fmt: skip


def _check_group_score(moe: MixtureOfExperts, expected: str, where: str) -> None:
    if moe.n_group > 1 and moe.group_score != expected:
        raise _refusal(where, "feed_forward.group_score", moe.group_score, expected,
                       f"no published architecture has another with scoring_func "
                       f"{moe.scoring_func}")  # fmt: skip


def _check_width(spec: DecoderSpec, architecture: str, where: str) -> None:
    heads = spec.attention.num_attention_heads
    if spec.hidden_size % heads:
        raise _refusal(where, "hidden_size", spec.hidden_size, f"a multiple of {heads}",
                       f"{architecture}Config insists on one of num_attention_heads")  # fmt: skip


def _refusal(where: str, key: str, found: Any, expected: Any, reason: str) -> UserError:
    return UserError(f"{where}: {key}: found {found}, expected {expected}: {reason}")
