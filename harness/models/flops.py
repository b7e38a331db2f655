"""Floating-point operations of training, by closed form."""

from typing import Any

from harness.config.decoder_schema import DecoderSpec, MultiHeadLatentAttention
from harness.config.model_schema import AirbenchSpec
from harness.models.counts import count_parameters, matrix_parameters

# Pixels and colours of the images that cost estimates assume; CIFAR-10's.
IMAGE_SIZE, COLOURS = 32, 3
# Multiply-adds of one 32x32 image in ResNet-18 with the small-image stem (about 0.56 G).
RESNET18_FORWARD = 2 * 0.556e9


def training_flops_per_example(spec: Any, sequence_length: int | None) -> float:
    """Return forward and backward operations of one sequence or one image.

    Those of ``decoder_training_flops``, causal and with multi-token prediction; a decoder without
    a vocabulary of its own is counted without its head.

    Args:
        spec: A ``ModelSpec``.
        sequence_length: Tokens of a sequence; None for image models.
    """
    if spec.family == "decoder":
        assert sequence_length is not None
        return decoder_training_flops(spec, sequence_length, vocab_size=0)
    if spec.family == "vit":
        tokens = (IMAGE_SIZE // spec.patch_size) ** 2
        width = spec.hidden_size
        weights = spec.num_hidden_layers * (4 * width**2 + 2 * width * spec.intermediate_size)
        attention = spec.num_hidden_layers * 12 * tokens * width
        return tokens * (6 * weights + attention)
    if spec.family == "airbench":
        return _airbench_flops(spec)
    return 3 * RESNET18_FORWARD


def _airbench_flops(spec: AirbenchSpec) -> float:
    """Return the operations of one image; the whitening has no gradient."""
    values = COLOURS * spec.patch_size**2
    inputs, side = 2 * values, IMAGE_SIZE - spec.patch_size + 1
    flops = 2.0 * inputs * values * side**2
    for width in spec.widths:
        first, second = inputs * side**2, width * (side // 2) ** 2
        flops += 3 * 2 * 9 * width * (first + second)
        inputs, side = width, side // 2
    return flops


def decoder_training_flops(
    spec: DecoderSpec,
    sequence_length: int,
    *,
    causal: bool = True,
    prediction: bool = True,
    vocab_size: int | None = None,
) -> float:
    """Return forward and backward operations of one sequence, ``S (6 N + L A)``.

    ``N`` are the parameters that matrix products read per token: head, router and shared experts
    are among them, the input embedding and idle experts are not. ``A`` is what attention adds in
    each of ``L`` layers, ``3 * 2 S (d_qk + d_v) n_h``: scores and weighted sum over ``S``
    positions, forward and twice that backward (Chowdhery et al., arXiv 2204.02311, appendix B).
    Causal attention is half of it, the lower triangle. Nothing is recomputed, dropped by a
    capacity or spent on norms, biases and activations. Latent attention trains with expanded heads.
    A module of multi-token prediction adds its projection, its block and another pass of the head;
    module k sees ``S - k`` positions.

    Args:
        spec: Of the decoder.
        sequence_length: ``S``, in tokens.
        causal: Whether only the lower triangle of attention is counted.
        prediction: Whether multi-token prediction is counted.
        vocab_size: Tokens, for a decoder without a size of its own.
    """
    attention = 6 * _attention_width(spec) * (0.5 if causal else 1)
    weights = 6 * matrix_parameters(spec, vocab_size)
    flops = sequence_length * (weights + spec.num_hidden_layers * attention * sequence_length)
    if prediction and spec.prediction is not None:
        parts = count_parameters(spec, vocab_size)
        depth = spec.prediction.depth
        module = 6 * (parts["prediction"].matrices // depth + parts["head"].matrices)
        for positions in range(sequence_length - depth, sequence_length):
            flops += positions * (module + attention * positions)
    return flops


def _attention_width(spec: DecoderSpec) -> int:
    """Return ``(d_qk + d_v) n_h``."""
    options = spec.attention
    value = spec.head_dim
    if isinstance(options, MultiHeadLatentAttention):
        value = options.v_head_dim
    return (spec.head_dim + value) * options.num_attention_heads
