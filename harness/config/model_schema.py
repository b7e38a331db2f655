"""Schema of ``config/models.yaml``: sizes under the names that Hugging Face configs use."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from harness.config.base import Spec


class GroupedQueryAttention(Spec):
    """Attention with ``num_key_value_heads`` shared by groups of query heads.

    As many key-value heads as query heads is multi-head attention, one is multi-query attention.
    """

    kind: Literal["gqa"] = "gqa"
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt | None = Field(None, description="none: hidden_size over query heads")

    @model_validator(mode="after")
    def _groups(self) -> "GroupedQueryAttention":
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide "
                f"num_attention_heads {self.num_attention_heads}"
            )
        return self


class SwiGLU(Spec):
    """The gated feed-forward of Llama: down(silu(gate(x)) * up(x))."""

    kind: Literal["swiglu"] = "swiglu"
    intermediate_size: PositiveInt


class DecoderSpec(Spec):
    """A Llama-style decoder: RMSNorm, rotary positions, pre-norm residual blocks, no biases."""

    family: Literal["decoder"]
    vocab_size: PositiveInt | None = Field(None, description="none: that of the tokenizer")
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    attention: GroupedQueryAttention
    feed_forward: SwiGLU
    rope_theta: PositiveFloat = 10000.0
    rms_norm_eps: PositiveFloat = 1e-5
    tie_word_embeddings: bool = False
    initializer_range: PositiveFloat = 0.02

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.attention.head_dim or self.hidden_size // self.attention.num_attention_heads

    @model_validator(mode="after")
    def _heads(self) -> "DecoderSpec":
        heads = self.attention.num_attention_heads
        if self.attention.head_dim is None and self.hidden_size % heads:
            raise ValueError(
                f"num_attention_heads {heads} does not divide hidden_size {self.hidden_size}; "
                "expected a divisor, or attention.head_dim"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, rotary positions need an even one")
        return self


class VitSpec(Spec):
    """A vision transformer after Beyer et al., arXiv 2205.01580 (simple ViT).

    Fixed sine-cosine positions, pre-norm blocks, global average pooling instead of a class token.
    """

    family: Literal["vit"]
    patch_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt

    @model_validator(mode="after")
    def _heads(self) -> "VitSpec":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} does not divide "
                f"hidden_size {self.hidden_size}"
            )
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size}: sine-cosine positions in two "
                             "dimensions need a multiple of 4")  # fmt: skip
        return self


class TorchvisionSpec(Spec):
    """A convolutional network of torchvision with a stem for small images.

    The first convolution is 3x3 without stride and there is no max-pooling, as is usual for images
    of 32x32 pixels.
    """

    family: Literal["torchvision"]
    name: Literal["resnet18"]


ModelSpec = Annotated[DecoderSpec | VitSpec | TorchvisionSpec, Field(discriminator="family")]
