"""What autograd saves for the backward pass, counted on the real tensors of a decoder.

The forward pass of training runs at full size on fake tensors, which have shapes, types and
storages but no memory. Counted is every distinct storage that autograd keeps. Parameters and their
copies in another type are left out, and so is the gradient of the output head, which the loss may
compute in the forward pass already. Kernels are those of a GPU: attention keeps its inputs, output
and one float32 per query and head, never the scores, and RMSNorm keeps its input and one float32
per row. Latent attention pads its values to the width of its keys, as the flash kernels of torch
want it. Tokens are taken to spread evenly over the experts.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.config.decoder_schema import DecoderSpec, MixtureOfExperts
from harness.models import build_model
from harness.models.counts import Part
from harness.models.decoder import Decoder
from harness.systems.memory.saved_storages import Role, Storage, count

# Where a tensor was saved: in a kind of layer, or in a part that the model has once.
Place = Literal["embedding", "dense_layer", "expert_layer", "head", "prediction"]
# On a CPU attention computes bfloat16 in float32. Float16, which is as wide, goes the GPU's way.
DTYPES = {"float32": torch.float32, "bfloat16": torch.float16}

_PARTS: tuple[tuple[str, Part], ...] = (
    (r"^prediction(\.|$)", "prediction"),
    (r"^embedding$", "embedding"),
    (r"norm$", "norms"),
    (r"\.attention(\.|$)", "attention"),
    (r"\.feed_forward\.shared(\.|$)", "shared_experts"),
    (r"\.feed_forward\.router$", "router"),
)


class Saved(NamedTuple):
    """Bytes that a part saves in one place, in one role."""

    place: Place
    part: Part
    role: Role
    itemsize: int
    nbytes: int


def part_of(name: str, *, mixture: bool) -> Part:
    """Return the part of a decoder that a module or parameter of this name belongs to.

    Activations of routing are those of the experts; the router has parameters alone.

    Args:
        name: Its path in the decoder, for a parameter without ``.weight`` or ``.bias``.
        mixture: Whether the feed-forward of its layer is a mixture of experts.
    """
    for pattern, part in _PARTS:
        if re.search(pattern, name):
            return part
    if ".feed_forward" in name:
        return "experts" if mixture else "dense"
    return "head"


@cache
def saved_for_backward(
    spec: DecoderSpec, sequences: int, length: int, dtype: Literal["float32", "bfloat16"]
) -> tuple[Saved, ...]:
    """Return what the forward pass of a micro-batch saves, of every kind of layer once.

    Args:
        spec: A decoder with a vocabulary of its own.
        sequences: Of the micro-batch.
        length: Tokens of each.
        dtype: Of weights and activations; losses and routing are in float32 anyway.

    Returns:
        Bytes by place, part and role. A layer of a kind counts once; multi-token prediction counts
        with all its depths.
    """
    short, kinds = one_layer_of_each_kind(spec)
    with FakeTensorMode(), _default_dtype(DTYPES[dtype]):
        model = build_model(short)
        assert isinstance(model, Decoder)
        tokens_BT = torch.zeros(sequences, length, dtype=torch.int64)
        storages, roles = count(model, lambda: model.objective(tokens_BT, tokens_BT, 0.0))
    sums: dict[tuple[Place, Part, Role, int], int] = {}
    for key, saved in storages.items():
        place = place_of(saved.module, kinds)
        if place is not None and saved.shape != model.head.weight.shape:
            part = part_of(saved.module, mixture=place != "dense_layer")
            role = roles.get(key) or _unnamed_role(saved, spec)
            group = (place, part, role, saved.itemsize)
            sums[group] = sums.get(group, 0) + saved.storage.nbytes()
    return tuple(Saved(*group, nbytes) for group, nbytes in sums.items())


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def one_layer_of_each_kind(spec: DecoderSpec) -> tuple[DecoderSpec, dict[int, Place]]:
    """Return a decoder with few layers, and the kinds of those of its layers that count.

    The first layer counts for none: it saves what all layers share, the angles of rotation.
    """
    moe = spec.feed_forward
    if not isinstance(moe, MixtureOfExperts):
        return spec.model_copy(update={"num_hidden_layers": 2}), {1: "dense_layer"}
    if not moe.first_k_dense_replace:
        return spec.model_copy(update={"num_hidden_layers": 2}), {1: "expert_layer"}
    short = moe.model_copy(update={"first_k_dense_replace": 2})
    changes = {"num_hidden_layers": 3, "feed_forward": short}
    return spec.model_copy(update=changes), {1: "dense_layer", 2: "expert_layer"}


def _unnamed_role(saved: Storage, spec: DecoderSpec) -> Role:
    """Return the role of what no watched function made: a mixture keeps its experts' outputs."""
    of_layer = saved.module.endswith(".feed_forward")
    return "expert_output" if of_layer and saved.shape[-1] == spec.hidden_size else "other"


def place_of(module: str, kinds: dict[int, Place]) -> Place | None:
    """Return where a module or parameter is; None for layers that do not count.

    Args:
        module: Its path in a decoder of few layers.
        kinds: Of the layers that count.
    """
    first, _, rest = module.partition(".")
    if first == "blocks":
        return kinds.get(int(rest.partition(".")[0]))
    if first == "embedding":
        return "embedding"
    return "prediction" if first == "prediction" else "head"
