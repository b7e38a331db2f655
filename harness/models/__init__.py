"""Models built from their specifications; each family is imported only when it is used."""

from typing import Any

from torch import nn

from harness.errors import UserError


def build_model(
    spec: Any,
    *,
    vocab_size: int | None = None,
    image_size: int = 32,
    channels: int = 3,
    num_classes: int = 10,
) -> nn.Module:
    """Return the model of ``spec`` with weights drawn from torch's global generator.

    Args:
        spec: A ``ModelSpec``.
        vocab_size: Tokens of the tokenizer, for decoders without a size of their own.
        image_size: Height and width of the images in pixels.
        channels: Colours of the images.
        num_classes: Image classes.

    Raises:
        UserError: If the tokenizer has more tokens than the model, or the model does not fit the
            image.
    """
    if spec.family == "decoder":
        from harness.models.decoder import Decoder

        size = spec.vocab_size or vocab_size
        assert size is not None, "a decoder needs a vocabulary"
        if vocab_size is not None and vocab_size > size:
            raise UserError(
                f"models.yaml: vocab_size: found {size}, expected at least the {vocab_size} tokens "
                "of the dataset's tokenizer"
            )
        return Decoder(spec, size)
    if spec.family == "vit":
        from harness.models.vit import VisionTransformer

        return VisionTransformer(spec, image_size, channels, num_classes)
    if spec.family == "airbench":
        from harness.models.airbench import WhitenedConvNet

        return WhitenedConvNet(spec, image_size, channels, num_classes)
    from harness.models.convolutional import SmallImageResNet18

    return SmallImageResNet18(channels, num_classes)
