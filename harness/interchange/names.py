"""Which tensors of a decoder of the harness are which tensors of a published checkpoint.

A published checkpoint has a matrix for each expert where the harness stacks them, one matrix for
the latent and the rotary key where the harness has two, and the embedding and the output head again
in every module of multi-token prediction.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.config.decoder_schema import (
    DecoderSpec,
    GroupedQueryAttention,
    MixtureOfExperts,
    MultiHeadLatentAttention,
    SwiGLU,
)

State = Mapping[str, Tensor]
Names = Iterator["Rename | Stack | Rows | Zero"]


@dataclass(frozen=True)
class Rename:
    """One tensor with two names."""

    ours: str
    theirs: str

    def publish(self, state: State) -> dict[str, Tensor]:
        """Return the tensors of a published checkpoint."""
        return {self.theirs: state[self.ours]}

    def adopt(self, published: State) -> dict[str, Tensor]:
        """Return the tensors of the harness."""
        return {self.ours: published[self.theirs]}


@dataclass(frozen=True)
class Stack:
    """The matrices of all experts: one tensor of the harness, ``theirs`` with ``*`` for each."""

    ours: str
    theirs: str
    experts: int

    def publish(self, state: State) -> dict[str, Tensor]:
        """Return the tensors of a published checkpoint."""
        # Clones, as safetensors refuses tensors that share storage.
        matrices = [matrix.clone() for matrix in state[self.ours]]
        return dict(zip(self._theirs, matrices, strict=True))

    def adopt(self, published: State) -> dict[str, Tensor]:
        """Return the tensors of the harness."""
        return {self.ours: torch.stack([published[name] for name in self._theirs])}

    @property
    def _theirs(self) -> list[str]:
        return [self.theirs.replace("*", str(expert)) for expert in range(self.experts)]


@dataclass(frozen=True)
class Rows:
    """Matrices of the harness, by name with their heights, that are one published matrix."""

    ours: tuple[tuple[str, int], ...]
    theirs: str

    def publish(self, state: State) -> dict[str, Tensor]:
        """Return the tensors of a published checkpoint."""
        return {self.theirs: torch.cat([state[name] for name, _ in self.ours])}

    def adopt(self, published: State) -> dict[str, Tensor]:
        """Return the tensors of the harness."""
        parts = published[self.theirs].split([rows for _, rows in self.ours])
        return {name: part for (name, _), part in zip(self.ours, parts, strict=True)}


@dataclass(frozen=True)
class Zero:
    """A published tensor that the harness does not have, which makes no difference as zeros."""

    theirs: str
    shape: tuple[int, ...]

    def publish(self, state: State) -> dict[str, Tensor]:
        """Return the tensors of a published checkpoint."""
        return {self.theirs: torch.zeros(self.shape, dtype=state["embedding.weight"].dtype)}

    def adopt(self, published: State) -> dict[str, Tensor]:
        """Return the tensors of the harness."""
        return {}


def names_of(spec: DecoderSpec) -> Names:
    """Yield the names of every tensor of the decoder of ``spec`` that is trained."""
    yield Rename("embedding.weight", "model.embed_tokens.weight")
    for layer in range(spec.num_hidden_layers):
        yield from _block(spec, layer, f"blocks.{layer}", f"model.layers.{layer}")
    yield Rename("norm.weight", "model.norm.weight")
    if not spec.tie_word_embeddings:
        yield Rename("head.weight", "lm_head.weight")
    if spec.prediction is not None:
        for depth in range(spec.prediction.depth):
            layer = spec.num_hidden_layers + depth
            yield from _prediction(spec, layer, f"prediction.{depth}", f"model.layers.{layer}")


def copies_of(spec: DecoderSpec) -> dict[str, str]:
    """Return the names of published copies with the name of what they are copies of."""
    copies = {}
    if spec.prediction is not None:
        for depth in range(spec.prediction.depth):
            theirs = f"model.layers.{spec.num_hidden_layers + depth}"
            copies[f"{theirs}.embed_tokens.weight"] = "embedding.weight"
            copies[f"{theirs}.shared_head.head.weight"] = "head.weight"
    return copies


def _prediction(spec: DecoderSpec, layer: int, ours: str, theirs: str) -> Names:
    yield from _renamed(ours, theirs, {
        "embedding_norm": "enorm",
        "state_norm": "hnorm",
        "projection": "eh_proj",
        "norm": "shared_head.norm",
    })  # fmt: skip
    yield from _block(spec, layer, f"{ours}.block", theirs)


def _block(spec: DecoderSpec, layer: int, ours: str, theirs: str) -> Names:
    yield from _renamed(ours, theirs, {
        "attention_norm": "input_layernorm",
        "attention.output": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
    })  # fmt: skip
    if isinstance(spec.attention, MultiHeadLatentAttention):
        yield from _latent(spec.attention, f"{ours}.attention", f"{theirs}.self_attn")
    else:
        yield from _grouped(spec, f"{ours}.attention", f"{theirs}.self_attn")
    feed_forward = spec.feed_forward_of(layer)
    if isinstance(feed_forward, SwiGLU):
        yield from _renamed(f"{ours}.feed_forward", f"{theirs}.mlp", _SWIGLU)
    else:
        yield from _mixture(feed_forward, spec.hidden_size, f"{ours}.feed_forward", f"{theirs}.mlp")


_SWIGLU = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def _grouped(spec: DecoderSpec, ours: str, theirs: str) -> Names:
    assert isinstance(spec.attention, GroupedQueryAttention)
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    yield from _renamed(ours, theirs, names)
    if spec.attention.attention_bias:
        yield from _renamed(ours, theirs, names, "bias")
        if isinstance(spec.feed_forward, SwiGLU):
            # Llama with biases has one here too.
            yield Zero(f"{theirs}.o_proj.bias", (spec.hidden_size,))


def _latent(attention: MultiHeadLatentAttention, ours: str, theirs: str) -> Names:
    if attention.q_lora_rank is None:
        yield from _renamed(ours, theirs, {"query": "q_proj"})
    else:
        yield from _renamed(ours, theirs, {
            "query_down": "q_a_proj",
            "query_norm": "q_a_layernorm",
            "query_up": "q_b_proj",
        })  # fmt: skip
    latent = (f"{ours}.key_value_down.weight", attention.kv_lora_rank)
    rotary = (f"{ours}.key_rope.weight", attention.qk_rope_head_dim)
    yield Rows((latent, rotary), f"{theirs}.kv_a_proj_with_mqa.weight")
    yield from _renamed(ours, theirs, {
        "key_value_norm": "kv_a_layernorm",
        "key_value_up": "kv_b_proj",
    })  # fmt: skip


def _mixture(moe: MixtureOfExperts, width: int, ours: str, theirs: str) -> Names:
    yield Rename(f"{ours}.router.weight", f"{theirs}.gate.weight")
    if moe.scoring_func == "sigmoid":
        yield Rename(f"{ours}.routing_bias", f"{theirs}.gate.e_score_correction_bias")
    for part, name in _SWIGLU.items():
        yield Stack(f"{ours}.{part}", f"{theirs}.experts.*.{name}.weight", moe.n_routed_experts)
    if moe.n_shared_experts:
        yield from _renamed(f"{ours}.shared", f"{theirs}.shared_experts", _SWIGLU)
    else:
        # The published layers always have shared experts, which may be of width 0.
        for name in _SWIGLU.values():
            shape = (width, 0) if name == "down_proj" else (0, width)
            yield Zero(f"{theirs}.shared_experts.{name}.weight", shape)


def _renamed(ours: str, theirs: str, names: Mapping[str, str], kind: str = "weight") -> Names:
    for part, name in names.items():
        yield Rename(f"{ours}.{part}.{kind}", f"{theirs}.{name}.{kind}")
