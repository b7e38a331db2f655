"""Model FLOPs utilization: the operations that a model needs over what the GPU could do.

MFU (Chowdhery et al., arXiv 2204.02311, appendix B) counts the operations of forward and backward
by closed form (``harness.models.flops``, causal attention), none that are recomputed, over the
dense bfloat16 peak of the GPU. Products in FP8 have a peak twice as high; theirs is against the
bfloat16 peak too, as in DeepSeek-V3's table 4 of arXiv 2505.09343, and the metric says so.
"""

from collections.abc import Mapping
from typing import Any

import torch

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.models.flops import (
    IMAGE_SIZE,
    decoder_training_flops,
    training_flops_per_example,
)

# Dense bfloat16 FLOP/s by the name that CUDA reports, from NVIDIA's data sheets, where those of
# Hopper, Ada and Blackwell print the rate with sparsity, twice this. A name that is not here has no
# peak: MIG instances, for example, are called otherwise than the whole GPU.
BFLOAT16_PEAK = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H800": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA B200": 2250e12,
}


def bfloat16_peak(device: torch.device) -> float | None:
    """Return the dense bfloat16 FLOP/s of a GPU, None for a device that is not in the table."""
    if device.type != "cuda":
        return None
    return BFLOAT16_PEAK.get(torch.cuda.get_device_name(device))


def flops_per_example(spec: Mapping[str, Any], manifest: Mapping[str, Any]) -> float | None:
    """Return forward and backward operations per token or image.

    Args:
        spec: Resolved training specification.
        manifest: Of its dataset.

    Returns:
        None for images of another size than the closed forms are for.
    """
    model = validate(ModelSpec, spec["model"], "model")
    length = spec["training"]["sequence_length"]
    if spec["task"] == "language":
        return decoder_training_flops(model, length, vocab_size=manifest["vocab_size"]) / length
    if manifest["size"] != IMAGE_SIZE:
        return None
    return training_flops_per_example(model, None)


def utilization(
    spec: Mapping[str, Any], flops_per_second: float | None, peak: float | None
) -> float | None:
    """Return MFU against the bfloat16 peak.

    Args:
        spec: Resolved training specification.
        flops_per_second: Of the model.
        peak: Of ``bfloat16_peak``.

    Returns:
        None without a peak, and for training in float32, which has another one.
    """
    if flops_per_second is None or peak is None or spec["training"]["precision"] != "bfloat16":
        return None
    return flops_per_second / peak
