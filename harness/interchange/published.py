"""Schemas of the `config.json` of the architectures that a decoder of the harness can be.

Keys and defaults are those of `transformers`' configuration classes; keys that do not change what
a model computes are left out. As in the configurations that were published, and in what
`transformers` 4.56 reads, `rope_theta` is a key of its own; version 5 has it in `rope_parameters`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

# A key of our own for what a specification says about training alone; `transformers` ignores it.
TRAINING_KEY = "harness_training"


class PublishedConfig(BaseModel):
    """What all architectures have in common."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = Field(description="none: one per query head")
    hidden_act: Literal["silu"] = "silu"
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: None = Field(None, exclude=True)
    partial_rotary_factor: float = Field(1.0, exclude=True)
    tie_word_embeddings: bool = False
    quantization_config: None = Field(None, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _spread_rope_parameters(cls, data: Any) -> Any:
        """Take the keys of version 5's `rope_parameters` for keys of the configuration."""
        if not isinstance(data, dict):
            return data
        rope = dict(data.get("rope_parameters") or data.get("rope_scaling") or {})
        kind = rope.pop("rope_type", rope.pop("type", "default"))
        if kind != "default":
            raise ValueError(f"rope_scaling: found '{kind}', expected none: positions of the "
                             "harness are not scaled")  # fmt: skip
        known = {"rope_theta", "partial_rotary_factor"}
        return data | {"rope_scaling": None} | {key: rope[key] for key in known & rope.keys()}

    @model_validator(mode="after")
    def _all_channels_rotate(self) -> "PublishedConfig":
        if self.partial_rotary_factor != 1.0:
            raise ValueError(f"partial_rotary_factor: found {self.partial_rotary_factor}, expected "
                             "1.0: all channels of a head are rotated")  # fmt: skip
        return self


class Llama(PublishedConfig):
    """`LlamaForCausalLM`."""

    model_type: Literal["llama"] = "llama"
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = Field(None, description="none: hidden_size over query heads")
    attention_bias: bool = Field(False, description="of query, key, value and of the output")
    mlp_bias: Literal[False] = False


class Qwen2(PublishedConfig):
    """`Qwen2ForCausalLM`: Llama with biases of query, key and value, but not of the output."""

    model_type: Literal["qwen2"] = "qwen2"
    head_dim: PositiveInt | None = None
    use_sliding_window: Literal[False] = False
    layer_types: list[Literal["full_attention"]] | None = None


class WithExperts(PublishedConfig):
    """The options of experts that DeepSeek-V2, V3 and GLM-4.5 share."""

    moe_intermediate_size: PositiveInt
    n_routed_experts: PositiveInt
    n_shared_experts: NonNegativeInt | None
    num_experts_per_tok: PositiveInt
    routed_scaling_factor: float
    n_group: PositiveInt | None
    topk_group: PositiveInt | None
    first_k_dense_replace: NonNegativeInt
    norm_topk_prob: bool
    moe_layer_freq: Literal[1] = Field(1, exclude=True)


class Glm4Moe(WithExperts):
    """`Glm4MoeForCausalLM`: grouped-query attention with the experts of DeepSeek-V3."""

    model_type: Literal["glm4_moe"] = "glm4_moe"
    rms_norm_eps: float = 1e-5
    head_dim: PositiveInt | None = None
    attention_bias: bool = Field(False, description="of query, key and value")
    use_qk_norm: Literal[False] = False
    partial_rotary_factor: float = 0.5
    num_nextn_predict_layers: NonNegativeInt = Field(
        1, description="of multi-token prediction; of those the weights may have fewer"
    )


class Deepseek(WithExperts):
    """The latent attention that DeepSeek-V2 and V3 share."""

    q_lora_rank: PositiveInt | None
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    v_head_dim: PositiveInt
    attention_bias: Literal[False] = False

    @model_validator(mode="after")
    def _a_key_for_each_head(self) -> "Deepseek":
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if groups not in (None, heads):
            raise ValueError(f"num_key_value_heads: found {groups}, expected {heads} as "
                             "num_attention_heads: latent attention has no groups")  # fmt: skip
        return self


class DeepseekV2(Deepseek):
    """`DeepseekV2ForCausalLM`.

    Routed by a softmax whose values are the weights of the experts: neither DeepSeek's code with
    the published configurations nor `transformers` normalises them over the chosen ones.
    """

    model_type: Literal["deepseek_v2"] = "deepseek_v2"
    num_key_value_heads: PositiveInt | None = None
    scoring_func: Literal["softmax"] = "softmax"
    topk_method: Literal["greedy", "group_limited_greedy"] = "greedy"
    norm_topk_prob: Literal[False] = False


class DeepseekV3(Deepseek):
    """`DeepseekV3ForCausalLM`."""

    model_type: Literal["deepseek_v3"] = "deepseek_v3"
    scoring_func: Literal["sigmoid"] = "sigmoid"
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    rope_interleave: Literal[True] = True
    num_nextn_predict_layers: NonNegativeInt = Field(
        1, description="of multi-token prediction; of those the weights may have fewer"
    )


AnyPublished = Annotated[
    Llama | Qwen2 | Glm4Moe | DeepseekV2 | DeepseekV3, Field(discriminator="model_type")
]
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}
