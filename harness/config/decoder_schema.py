"""Schema of a decoder: one Transformer whose parts are chosen by name."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from harness.config.base import Spec

# Formats of one quantised value; the numbers of `logfmt` are its bits.
Format = Literal["e4m3", "e5m2", "e5m6", "logfmt8", "logfmt10"]


class GroupedQueryAttention(Spec):
    """Attention with ``num_key_value_heads`` shared by groups of query heads.

    As many key-value heads as query heads is multi-head attention, one is multi-query attention.
    """

    kind: Literal["gqa"] = "gqa"
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt | None = Field(None, description="none: hidden_size over query heads")
    attention_bias: bool = Field(False, description="biases of query, key and value, as in Qwen2")

    @model_validator(mode="after")
    def _groups(self) -> "GroupedQueryAttention":
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads % groups:
            raise ValueError(
                f"num_key_value_heads {groups} does not divide num_attention_heads {heads}"
                f"{_nearest(groups, _divisors(heads))}"
            )
        return self


class MultiHeadLatentAttention(Spec):
    """Attention over a shared low-rank latent (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    kind: Literal["mla"] = "mla"
    num_attention_heads: PositiveInt
    q_lora_rank: PositiveInt | None = Field(None, description="none: queries without a latent")
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt = Field(description="width of the shared rotary key")
    v_head_dim: PositiveInt

    @model_validator(mode="after")
    def _rotary(self) -> "MultiHeadLatentAttention":
        width = self.qk_rope_head_dim
        if width % 2:
            raise ValueError(f"qk_rope_head_dim {width} is odd, rotary positions need an even one"
                             f"{_nearest(width, (width - 1, width + 1))}")  # fmt: skip
        return self


class SwiGLU(Spec):
    """The gated feed-forward of Llama: down(silu(gate(x)) * up(x))."""

    kind: Literal["swiglu"] = "swiglu"
    intermediate_size: PositiveInt


class Balance(Spec):
    """How the load of routed experts is kept even; the parts may be combined.

    ``bias_update_rate`` is the auxiliary-loss-free method (Wang et al., arXiv 2408.15664). The
    losses are ``weight * sum_i f_i P_i`` with f the load and P the mean affinity of each expert:
    over each sequence with normalised affinities (DeepSeek-V3, eq. 17-20), over the whole batch
    with normalised ones (section 4.5.3), or over the batch with plain ones (Switch, GShard).
    """

    bias_update_rate: NonNegativeFloat = Field(0.0, description="step of the routing bias")
    bias_update_until: float = Field(1.0, ge=0, le=1, description="share of the steps")
    sequence_loss: NonNegativeFloat = Field(0.0, description="weight")
    batch_loss: NonNegativeFloat = Field(0.0, description="weight")
    auxiliary_loss: NonNegativeFloat = Field(0.0, description="weight")


class MixtureOfExperts(Spec):
    """DeepSeekMoE: shared experts and ``num_experts_per_tok`` of the routed ones (V3, 2.1.2)."""

    kind: Literal["moe"] = "moe"
    moe_intermediate_size: PositiveInt = Field(description="width of one expert")
    n_routed_experts: PositiveInt
    num_experts_per_tok: PositiveInt
    n_shared_experts: NonNegativeInt = 0
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    norm_topk_prob: bool = Field(True, description="weights of the chosen experts sum to one")
    routed_scaling_factor: PositiveFloat = 1.0
    n_group: PositiveInt = Field(1, description="groups of experts, one per node")
    topk_group: PositiveInt = Field(1, description="groups that a token may be sent to")
    group_score: Literal["sum_of_top_two", "max"] = Field(
        "sum_of_top_two", description="how a group is ranked: DeepSeek-V3's way, or V2's"
    )
    first_k_dense_replace: NonNegativeInt = Field(0, description="first layers stay dense")
    intermediate_size: PositiveInt | None = Field(None, description="width of the dense layers")
    capacity_factor: PositiveFloat | None = Field(
        None, description="tokens an expert takes over its even share; none: nothing is dropped"
    )
    balance: Balance = Balance()

    @model_validator(mode="after")
    def _routing(self) -> "MixtureOfExperts":
        experts, chosen = self.n_routed_experts, self.num_experts_per_tok
        if chosen > experts:
            raise ValueError(f"num_experts_per_tok {chosen} is above n_routed_experts {experts}; "
                             f"expected at most {experts}")  # fmt: skip
        if experts % self.n_group:
            raise ValueError(f"n_group {self.n_group} does not divide n_routed_experts {experts}"
                             f"{_nearest(self.n_group, _divisors(experts))}")  # fmt: skip
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group {self.topk_group} is above n_group {self.n_group}; "
                             f"expected at most {self.n_group}")  # fmt: skip
        in_group = experts // self.n_group
        if self.topk_group * in_group < chosen:
            raise ValueError(
                f"topk_group {self.topk_group} leaves {self.topk_group * in_group} experts, fewer "
                f"than num_experts_per_tok {chosen}; expected topk_group of at least "
                f"{math.ceil(chosen / in_group)}"
            )
        if self.n_group > 1 and self.group_score == "sum_of_top_two" and in_group < 2:
            raise ValueError(f"n_group {self.n_group} leaves groups of {in_group} expert, "
                             "group_score sum_of_top_two needs at least 2; expected n_group of at "
                             f"most {experts // 2}")  # fmt: skip
        if self.first_k_dense_replace and self.intermediate_size is None:
            raise ValueError("intermediate_size is missing, the first_k_dense_replace "
                             f"{self.first_k_dense_replace} dense layers need it")  # fmt: skip
        return self


class MultiTokenPrediction(Spec):
    """Modules that predict further tokens in sequence (DeepSeek-V3, section 2.2)."""

    depth: PositiveInt = Field(1, description="further tokens, one module each")
    loss_weight: PositiveFloat = Field(0.3, description="lambda of eq. 25")
    late_loss_weight: NonNegativeFloat | None = Field(None, description="none: as before")
    late_from: float = Field(1.0, ge=0, le=1, description="share of the steps before that")


class Fp8(Spec):
    """Linear layers in FP8: products of forward, input gradient and weight gradient.

    Embedding, output head, gate of the experts, norms and attention products stay as they are, and
    weights are kept in float32 (DeepSeek-V3, section 3.3). ``block`` scales activations by 1 x
    ``block_size`` and weights by ``block_size`` x ``block_size``.
    """

    scaling: Literal["tensor", "row", "block"] = "block"
    block_size: PositiveInt = 128
    format: Literal["e4m3", "e5m2"] = "e4m3"
    gradient_format: Literal["e4m3", "e5m2"] = "e4m3"
    power_of_two_scales: bool = False
    square_gradient_blocks: bool = Field(
        False, description="output gradients by square blocks too: the published bad case"
    )

    @model_validator(mode="after")
    def _square(self) -> "Fp8":
        if self.square_gradient_blocks and self.scaling != "block":
            raise ValueError(f"square_gradient_blocks needs scaling block, found {self.scaling}")
        return self


class Combine(Spec):
    """Outputs of the residual branches quantised, as an expert-parallel combine would send them.

    The experiment of arXiv 2505.09343, section 3.2; the gradient passes as if nothing was rounded.
    """

    format: Format
    tile: PositiveInt = Field(128, description="neighbouring channels that share a scale")


class DecoderSpec(Spec):
    """A decoder: RMSNorm, rotary positions, pre-norm residual blocks."""

    family: Literal["decoder"]
    vocab_size: PositiveInt | None = Field(None, description="none: that of the tokenizer")
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    attention: Annotated[
        GroupedQueryAttention | MultiHeadLatentAttention, Field(discriminator="kind")
    ]
    feed_forward: Annotated[SwiGLU | MixtureOfExperts, Field(discriminator="kind")]
    prediction: MultiTokenPrediction | None = Field(None, description="multi-token prediction")
    linear: Fp8 | None = Field(None, description="none: linear layers compute in the run's type")
    combine: Combine | None = Field(None, description="none: residual branches are not quantised")
    rope_theta: PositiveFloat = 10000.0
    rms_norm_eps: PositiveFloat = 1e-5
    tie_word_embeddings: bool = False
    initializer_range: PositiveFloat = 0.02

    @property
    def head_dim(self) -> int:
        """Width of one query head."""
        if isinstance(self.attention, MultiHeadLatentAttention):
            return self.attention.qk_nope_head_dim + self.attention.qk_rope_head_dim
        return self.attention.head_dim or self.hidden_size // self.attention.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Width of the part of a head that is rotated by position."""
        if isinstance(self.attention, MultiHeadLatentAttention):
            return self.attention.qk_rope_head_dim
        return self.head_dim

    def feed_forward_of(self, layer: int) -> SwiGLU | MixtureOfExperts:
        """Return the feed-forward of a layer, counted from 0; the first may be dense."""
        moe = self.feed_forward
        if isinstance(moe, MixtureOfExperts) and layer < moe.first_k_dense_replace:
            assert moe.intermediate_size is not None
            return SwiGLU(intermediate_size=moe.intermediate_size)
        return moe

    @model_validator(mode="after")
    def _heads(self) -> "DecoderSpec":
        attention = self.attention
        if not isinstance(attention, GroupedQueryAttention):
            return self
        heads = attention.num_attention_heads
        if attention.head_dim is None and self.hidden_size % heads:
            raise ValueError(
                f"num_attention_heads {heads} does not divide hidden_size {self.hidden_size}; "
                "expected a divisor, or attention.head_dim"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, rotary positions need an even one")
        return self

    @model_validator(mode="after")
    def _layers(self) -> "DecoderSpec":
        moe = self.feed_forward
        if isinstance(moe, MixtureOfExperts):
            dense, layers = moe.first_k_dense_replace, self.num_hidden_layers
            if dense >= layers:
                raise ValueError(f"first_k_dense_replace {dense} leaves no layer of {layers} with "
                                 f"experts; expected at most {layers - 1}")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _blocks(self) -> "DecoderSpec":
        if self.linear is not None and self.linear.scaling == "block":
            for name, width in _linear_widths(self):
                _whole_blocks(name, width, self.linear.block_size, "linear.block_size")
        if self.combine is not None:
            _whole_blocks("hidden_size", self.hidden_size, self.combine.tile, "combine.tile")
        return self


def _linear_widths(spec: DecoderSpec) -> Iterator[tuple[str, int]]:
    """Yield the sides of all matrices that ``linear`` applies to."""
    yield "hidden_size", spec.hidden_size
    match spec.attention:
        case GroupedQueryAttention() as gqa:
            yield "num_attention_heads * head_dim", gqa.num_attention_heads * spec.head_dim
            yield "num_key_value_heads * head_dim", gqa.num_key_value_heads * spec.head_dim
        case MultiHeadLatentAttention() as mla:
            heads = mla.num_attention_heads
            yield (
                "num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)",
                (heads * spec.head_dim),
            )
            yield "kv_lora_rank", mla.kv_lora_rank
            yield (
                "num_attention_heads * (qk_nope_head_dim + v_head_dim)",
                (heads * (mla.qk_nope_head_dim + mla.v_head_dim)),
            )
            yield "num_attention_heads * v_head_dim", heads * mla.v_head_dim
            if mla.q_lora_rank is not None:
                yield "q_lora_rank", mla.q_lora_rank
    match spec.feed_forward:
        case SwiGLU() as dense:
            yield "intermediate_size", dense.intermediate_size
        case MixtureOfExperts() as moe:
            yield "moe_intermediate_size", moe.moe_intermediate_size
            if moe.intermediate_size is not None:
                yield "intermediate_size", moe.intermediate_size


def _whole_blocks(name: str, width: int, block: int, key: str) -> None:
    if width % block:
        nearest = max(1, round(width / block)) * block
        raise ValueError(f"{name} is {width}, not a multiple of {key} {block}; the nearest is "
                         f"{nearest}")  # fmt: skip


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _nearest(found: int, valid: "list[int] | tuple[int, ...]") -> str:
    return f"; the nearest valid value is {min(valid, key=lambda value: abs(value - found))}"
