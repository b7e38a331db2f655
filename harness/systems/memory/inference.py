"""What every device holds when a model serves requests."""

import math
from collections import defaultdict

from harness.config.decoder_schema import DecoderSpec, GroupedQueryAttention, MixtureOfExperts
from harness.errors import UserError
from harness.models.counts import cached_elements
from harness.systems.cache_costs import served_content
from harness.systems.memory.cases import InferenceCase, check_layout
from harness.systems.memory.parameters import Group, all_pieces, local_share, parameters
from harness.systems.memory.training import Memory


def inference_memory(spec: DecoderSpec, case: InferenceCase, where: str) -> Memory:
    """Return the bytes that a device holds, by part and kind; all devices hold the same.

    Left out are the activations of the tokens in flight, buffers and workspace.

    Args:
        spec: The model.
        case: How it is served.
        where: Start of an error message.

    Raises:
        UserError: If the model cannot be cut like that.
    """
    _check(spec, case, where)
    memory: Memory = defaultdict(float)
    every = parameters(spec)
    for piece in all_pieces(spec):
        if piece.place == "prediction" and not case.prediction:
            continue
        for group, number in every[piece].items():
            memory[group.part, "weights"] += _held(spec, group, case) * number * _width(group, case)
    memory["attention", "cache"] = case.batch * case.context * cache_per_token(spec, case)
    return memory


def cache_per_token(spec: DecoderSpec, case: InferenceCase) -> float:
    """Return the bytes that a device caches of a token of its tensor-parallel group.

    Heads of keys and values are spread over the group, at least one on each device; a latent is
    whole on all of them.
    """
    layers = spec.num_hidden_layers
    if case.prediction and spec.prediction is not None:
        layers += spec.prediction.depth
    elements: float = cached_elements(spec, served_content(spec))
    if isinstance(spec.attention, GroupedQueryAttention):
        groups = spec.attention.num_key_value_heads
        elements *= math.ceil(groups / case.layout.tensor) / groups
    return layers * elements * case.cache_bytes


def _held(spec: DecoderSpec, group: Group, case: InferenceCase) -> float:
    """Return the share of a group's parameters that a device holds."""
    if group.part == "shared_experts" and case.shared_among_redundant:
        return 0.0
    share = local_share(group.cut, case.layout)
    if group.cut == "expert":
        assert isinstance(spec.feed_forward, MixtureOfExperts)
        share *= 1 + case.redundant_experts / spec.feed_forward.n_routed_experts
    return share


def _width(group: Group, case: InferenceCase) -> float:
    return case.weight_bytes if group.narrow else case.other_weight_bytes


def _check(spec: DecoderSpec, case: InferenceCase, where: str) -> None:
    if case.layout.pipeline > 1:
        raise UserError(f"{where}.layout.pipeline: found {case.layout.pipeline}, expected 1: "
                        "serving has no pipeline here")  # fmt: skip
    if case.prediction and spec.prediction is None:
        raise UserError(f"{where}.prediction: found true, the model has no multi-token prediction")
    moe = spec.feed_forward
    shared = moe.n_shared_experts if isinstance(moe, MixtureOfExperts) else 0
    needed = shared if case.shared_among_redundant else 0
    if case.redundant_experts and not isinstance(moe, MixtureOfExperts):
        raise UserError(f"{where}.redundant_experts: found {case.redundant_experts}, the model has "
                        "no experts; expected 0")  # fmt: skip
    if case.redundant_experts < needed:
        raise UserError(f"{where}.redundant_experts: found {case.redundant_experts}, expected at "
                        f"least the {needed} shared experts that are among them")  # fmt: skip
    check_layout(spec, case.layout, where, case.redundant_experts)
