"""Floating-point operations of training, by closed form."""

from typing import Any

# Pixels of the images that cost estimates assume; CIFAR-10's.
IMAGE_SIZE = 32
# Multiply-adds of one 32x32 image in ResNet-18 with the small-image stem (about 0.56 G).
RESNET18_FORWARD = 2 * 0.556e9


def training_flops_per_example(spec: Any, sequence_length: int | None) -> float:
    """Return forward and backward operations of one sequence or one image.

    Six per weight of every matrix product and token (two forward, four backward), the output head
    included and the input embedding left out, plus causal attention, 6 T d_model per layer and
    token (Chowdhery et al., arXiv 2204.02311, appendix B, halved for causality).

    Args:
        spec: A ``ModelSpec``.
        sequence_length: Tokens of a sequence; None for image models.
    """
    if spec.family == "decoder":
        assert sequence_length is not None
        attention = 6 * sequence_length * spec.attention.num_attention_heads * spec.head_dim
        per_token = 6 * _decoder_weights(spec) + spec.num_hidden_layers * attention
        return sequence_length * per_token
    if spec.family == "vit":
        tokens = (IMAGE_SIZE // spec.patch_size) ** 2
        width = spec.hidden_size
        weights = spec.num_hidden_layers * (4 * width**2 + 2 * width * spec.intermediate_size)
        attention = spec.num_hidden_layers * 12 * tokens * width
        return tokens * (6 * weights + attention)
    return 3 * RESNET18_FORWARD


def _decoder_weights(spec: Any) -> int:
    width, heads, groups = (spec.hidden_size, spec.attention.num_attention_heads,
                            spec.attention.num_key_value_heads)  # fmt: skip
    attention = 2 * width * (heads + groups) * spec.head_dim
    feed_forward = 3 * width * spec.feed_forward.intermediate_size
    head = width * (spec.vocab_size or 0)
    return spec.num_hidden_layers * (attention + feed_forward) + head
