"""torch.compile for the parts of a model in which training spends its time."""

import torch
from torch import nn

from harness.models.decoder import Block, Decoder
from harness.models.feed_forward import FeedForward


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the layers of ``model`` in place; names and state stay what they are.

    Block by block, as torchtitan does: equal blocks share one compilation. In a block with routed
    experts, whose products change their sizes with every batch, the attention is compiled. Models
    of other families are compiled whole.

    Args:
        model: In training.
        backend: Of torch.compile.
    """
    for module in _compiled(model):
        module.compile(backend=backend)


def _compiled(model: nn.Module) -> list[nn.Module]:
    if not isinstance(model, Decoder):
        return [model]
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    return [
        block if isinstance(block.feed_forward, FeedForward) else block.attention
        for block in blocks
    ]


def set_float32_products() -> dict[str, str]:
    """Make float32 products float32, and return so for the record.

    Convolutions would otherwise run in TF32, with 10 bits of mantissa, on GPUs that have it.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    return {"float32_products": "float32"}
