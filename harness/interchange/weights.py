"""The state of a decoder as the tensors of a published checkpoint, and back."""

from collections.abc import Collection

import torch
from torch import Tensor

from harness.config.decoder_schema import DecoderSpec
from harness.errors import UserError
from harness.interchange.names import State, Zero, copies_of, names_of
from harness.models.decoder import Decoder


def publish(spec: DecoderSpec, state: State) -> dict[str, Tensor]:
    """Return the tensors of ``state`` under their published names.

    Args:
        spec: Of the decoder, which ``write_config`` accepts.
        state: Its state.
    """
    result: dict[str, Tensor] = {}
    for names in names_of(spec):
        result |= names.publish(state)
    # The released weights repeat what the modules share, and some readers expect it.
    for copy, original in copies_of(spec).items():
        result[copy] = state[original].clone()
    return result


def adopt(spec: DecoderSpec, published: State, where: str) -> dict[str, Tensor]:
    """Return the state of the decoder of ``spec`` from tensors under their published names.

    Raises:
        UserError: If one is missing, is not expected, or has another shape than ``spec`` implies.
    """
    assert spec.vocab_size is not None, "a configuration has it"
    with torch.device("meta"):
        model = Decoder(spec, spec.vocab_size)
    empty = model.state_dict()
    names = list(names_of(spec))
    zeros = {tensor.theirs for tensor in names if isinstance(tensor, Zero)}
    copies = copies_of(spec)
    if spec.tie_word_embeddings:
        copies["lm_head.weight"] = "embedding.weight"
    _check_names(published, publish(spec, empty), zeros | copies.keys(), where)
    state: dict[str, Tensor] = {}
    for tensors in names:
        state |= tensors.adopt(published)
    if spec.tie_word_embeddings:
        state["head.weight"] = state["embedding.weight"]
    for name, tensor in empty.items():
        # A routing bias that the architecture does not have.
        state.setdefault(name, torch.zeros(tensor.shape, dtype=tensor.dtype))
    for name in zeros & published.keys():
        if published[name].any():
            raise UserError(f"{where}: {name}: found values other than zero, which the harness has "
                            "no tensor for")  # fmt: skip
    for name in copies.keys() & published.keys():
        if not torch.equal(published[name], state[copies[name]]):
            raise UserError(f"{where}: {name}: differs from the tensor that it should share")
    return state


def _check_names(published: State, expected: State, optional: Collection[str], where: str) -> None:
    missing = sorted(expected.keys() - published.keys() - set(optional))
    if missing:
        raise UserError(f"{where}: {missing[0]}: no such tensor{_more(missing)}; expected those of "
                        "the architecture in config.json")  # fmt: skip
    unknown = sorted(published.keys() - expected.keys() - set(optional))
    if unknown:
        raise UserError(f"{where}: {unknown[0]}: found a tensor that the architecture in "
                        f"config.json does not have{_more(unknown)}")  # fmt: skip
    for name in expected.keys() & published.keys():
        if published[name].shape != expected[name].shape:
            raise UserError(f"{where}: {name}: found shape {tuple(published[name].shape)}, "
                            f"expected {tuple(expected[name].shape)}")  # fmt: skip


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
