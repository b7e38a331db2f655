"""Parameters of every piece of a model, and how parallel layouts cut them."""

import re
from collections import Counter, defaultdict
from functools import cache
from typing import Literal, NamedTuple

import torch

from harness.config.decoder_schema import DecoderSpec, MixtureOfExperts
from harness.models import build_model
from harness.models.counts import Part
from harness.systems.memory.cases import Layout
from harness.systems.memory.saved_tensors import (
    Place,
    one_layer_of_each_kind,
    part_of,
    place_of,
)

# Cut by tensor parallelism, by expert parallelism, or whole on every device.
Cut = Literal["tensor", "expert", "whole"]
# The low-rank latents of attention are shared by all heads.
WHOLE = re.compile(r"(norm|router|query_down|key_value_down|key_rope)$")
# What FP8 leaves in a wider type (DeepSeek-V3, section 3.3.1).
WIDE = re.compile(r"(norm|router|^embedding|^head)$")


class Group(NamedTuple):
    """Parameters of one part that are cut and stored alike.

    Attributes:
        narrow: Whether FP8 applies to them.
    """

    part: Part
    cut: Cut
    narrow: bool


class Piece(NamedTuple):
    """What a pipeline stage is made of: layer ``layer``, or what the model has once."""

    place: Place
    layer: int = 0


@cache
def parameters(spec: DecoderSpec) -> dict[Piece, Counter[Group]]:
    """Return the parameters of every piece of a decoder by group, from built layers of each kind.

    A head that shares its weights with the embedding has none of its own. The final norm is in the
    piece of the head.
    """
    short, kinds = one_layer_of_each_kind(spec)
    with torch.device("meta"):
        model = build_model(short)
    places: defaultdict[Place, Counter[Group]] = defaultdict(Counter)
    for name, parameter in model.named_parameters():
        path = re.sub(r"\.(weight|bias)$", "", name)
        place = place_of(path, kinds)
        if place is not None:
            places[place][_group(path, parameter, place)] += parameter.numel()
    return {piece: places[piece.place] for piece in all_pieces(spec)}


def all_pieces(spec: DecoderSpec) -> list[Piece]:
    """Return the pieces of a decoder from the first to the last."""
    layers = [Piece(layer_kind(spec, layer), layer) for layer in range(spec.num_hidden_layers)]
    prediction = [] if spec.prediction is None else [Piece("prediction")]
    return [Piece("embedding"), *layers, Piece("head"), *prediction]


def layer_kind(spec: DecoderSpec, layer: int) -> Place:
    """Return the kind of a layer, counted from 0."""
    sparse = isinstance(spec.feed_forward_of(layer), MixtureOfExperts)
    return "expert_layer" if sparse else "dense_layer"


def stages_of(spec: DecoderSpec, stages: int) -> list[list[Piece]]:
    """Return the pieces of every pipeline stage.

    Consecutive layers, as evenly as they go, the longer stages first: the last one has the head
    and multi-token prediction too. How published runs cut their models is mostly not known.
    """
    first, *layers, head = [p for p in all_pieces(spec) if p.place != "prediction"]
    rest = [piece for piece in all_pieces(spec) if piece.place == "prediction"]
    size, longer = divmod(len(layers), stages)
    cut = [layers[stage * size + min(stage, longer) : (stage + 1) * size + min(stage + 1, longer)]
           for stage in range(stages)]  # fmt: skip
    cut[0] = [first, *cut[0]]
    cut[-1] = [*cut[-1], head, *rest]
    return cut


def needs_embedding_at_the_end(spec: DecoderSpec) -> bool:
    """Return whether the last stage reads the embedding: for prediction, or as its head."""
    return spec.prediction is not None or spec.tie_word_embeddings


def local_share(cut: Cut, layout: Layout) -> float:
    """Return the share of parameters cut like this that a device of their pipeline rank holds.

    Key and value projections of fewer heads than ``tensor`` are counted as if cut all the same.
    """
    return {"tensor": 1 / layout.tensor, "expert": 1 / layout.expert, "whole": 1.0}[cut]


def _group(path: str, parameter: torch.nn.Parameter, place: Place) -> Group:
    part = part_of(path, mixture=place != "dense_layer")
    narrow = parameter.ndim > 1 and not WIDE.search(path)
    if parameter.ndim == 3:
        return Group(part, "expert", narrow)
    return Group(part, "whole" if WHOLE.search(path) else "tensor", narrow)
