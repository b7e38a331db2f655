"""Schema of ``config/models.yaml``: sizes under the names that Hugging Face configs use."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from harness.config.base import Spec
from harness.config.decoder_schema import DecoderSpec


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


class AirbenchSpec(Spec):
    """The network of airbench (Jordan, arXiv 2404.00498) for CIFAR-10."""

    family: Literal["airbench"]
    patch_size: PositiveInt = Field(2, description="side of the patches that are whitened")
    widths: tuple[PositiveInt, ...] = Field(
        (64, 256, 256), min_length=1, description="channels of the groups, each of which halves "
        "the sides of the image",
    )  # fmt: skip


ModelSpec = Annotated[
    DecoderSpec | VitSpec | TorchvisionSpec | AirbenchSpec, Field(discriminator="family")
]
