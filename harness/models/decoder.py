"""A decoder: one Transformer whose attention, feed-forward and prediction heads are parts.

Shape suffixes: B batch, T positions, D hidden size, V vocabulary.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.config.decoder_schema import DecoderSpec, MixtureOfExperts, SwiGLU
from harness.models.attention import make_attention
from harness.models.cache import Cache, CacheForm, make_layer_cache
from harness.models.feed_forward import FeedForward
from harness.models.mixture import Mixture
from harness.models.multi_token import PredictionModules
from harness.models.rotary import Rotation, rotary_angles
from harness.models.token_loss import token_loss
from harness.numerics.scaling import round_in_tiles


class Decoder(nn.Module):
    """Token embedding, pre-norm residual blocks, a final norm and an output head.

    With grouped-query attention and SwiGLU it is Llama (Touvron et al., arXiv 2302.13971), with
    latent attention and experts DeepSeek-V3 (arXiv 2412.19437), weight for weight as in the
    `transformers` implementations.

    Attributes:
        companion_parameters: Patterns of the parameters that are not hidden matrices.
        layer_kinds: Patterns of the hidden matrices whose precision is compared, by kind of layer.
    """

    layer_kinds: ClassVar[dict[str, str]] = {
        "mlp_up": r"\.feed_forward\.(shared\.)?up(\.|\[|$)",
        "mlp_down": r"\.feed_forward\.(shared\.)?down(\.|\[|$)",
        "attention_qkv": (
            r"\.attention\.(query|key|value|query_(down|up)|key_value_(down|up)|key_rope)\."
        ),
        "attention_out": r"\.attention\.output\.",
    }

    def __init__(self, spec: DecoderSpec, vocab_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(vocab_size, spec.hidden_size)
        self.blocks = nn.ModuleList(Block(spec, layer) for layer in range(spec.num_hidden_layers))
        self.norm = nn.RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        self.head = nn.Linear(spec.hidden_size, vocab_size, bias=False)
        self.companion_parameters: tuple[str, ...] = (r"^embedding\.", r"^head\.")
        _initialise(self, spec)
        if spec.tie_word_embeddings:
            self.head.weight = self.embedding.weight
            self.companion_parameters = (r"^embedding\.",)
        if isinstance(spec.feed_forward, MixtureOfExperts):
            # Like the output head, the gate tells classes apart: a row of it is one expert.
            self.companion_parameters += (r"\.router\.",)
        # Last, so that a seed draws the same main model with and without prediction.
        self.prediction: PredictionModules | None = None
        if spec.prediction is not None:
            last = spec.num_hidden_layers - 1
            blocks = [Block(spec, last) for _ in range(spec.prediction.depth)]
            self.prediction = PredictionModules(spec, blocks)
            _initialise(self.prediction, spec)
        # First layer first; asked for in every step.
        self.mixtures = [module for module in self.modules() if isinstance(module, Mixture)]

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Return logits (B x T x V) for the token after each position."""
        return self.head(self.features(tokens_BT, cache))

    def features(
        self,
        tokens_BT: Tensor,
        cache: Cache | None = None,
        visible_B1TT: Tensor | None = None,
    ) -> Tensor:
        """Return the normalised states (B x T x D) that the output head reads.

        Args:
            tokens_BT: Token ids; with a cache, those after the positions that it holds.
            cache: Of ``new_cache``; takes in the new positions. For use without gradients.
            visible_B1TT: Which positions each of them may read; None for all earlier ones.
        """
        x_BTD = self.embedding(tokens_BT)
        start = 0 if cache is None else cache.length
        rotation = rotary_angles(
            start, tokens_BT.shape[1], self.spec.rotary_dim, self.spec.rope_theta, x_BTD.device
        )
        for index, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[index]
            x_BTD = block(x_BTD, rotation, layer, start, visible_B1TT)
        if cache is not None:
            cache.length += tokens_BT.shape[1]
        return self.norm(x_BTD)

    def new_cache(
        self,
        batch_size: int,
        capacity: int,
        *,
        form: CacheForm = "absorbed",
        dtype: torch.dtype | None = None,
    ) -> Cache:
        """Return an empty cache on the model's device.

        Args:
            batch_size: Sequences.
            capacity: Positions of each.
            form: What latent attention keeps; grouped-query attention keeps keys and values.
            dtype: None for that of the weights.
        """
        weight = self.embedding.weight
        modules = 0 if self.prediction is None else len(self.prediction)
        layers = [
            make_layer_cache(
                self.spec, batch_size, capacity, form, dtype or weight.dtype, weight.device
            )
            for _ in range(len(self.blocks) + modules)
        ]
        return Cache(layers, capacity)

    def loss(
        self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None
    ) -> Tensor:
        """Return the mean cross-entropy in nats of ``targets_BT``; -100 is ignored.

        Args:
            tokens_BT: Token ids.
            targets_BT: The token after each; -100 is ignored.
            documents_BT: Where each token is from; none of another document is read.
        """
        visible_B1TT = _visible(documents_BT)
        features_BTD = self.features(tokens_BT, visible_B1TT=visible_B1TT)
        return token_loss(features_BTD, self.head, targets_BT)

    def objective(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        progress: float,
        documents_BT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what training minimises, and the mean cross-entropy that is part of it.

        Args:
            tokens_BT: Token ids.
            targets_BT: The token after each; -100 is ignored.
            progress: Share of the training steps taken so far, for weights that change.
            documents_BT: Where each token is from; none of another document is read.
        """
        visible_B1TT = _visible(documents_BT)
        features_BTD = self.features(tokens_BT, visible_B1TT=visible_B1TT)
        loss = token_loss(features_BTD, self.head, targets_BT)
        objective = loss
        if self.prediction is not None:
            embedded_BTD = self.embedding(tokens_BT)
            objective = objective + self.prediction.loss(
                features_BTD, embedded_BTD, targets_BT, self.head, progress, visible_B1TT
            )
        for mixture in self.mixtures:
            objective = objective + mixture.balance_loss
        return objective, loss

    def after_step(self, progress: float) -> None:
        """Move the routing biases; to be called after each optimizer step.

        Args:
            progress: Share of the training steps taken so far.
        """
        for mixture in self.mixtures:
            mixture.after_step(progress)

    def statistics(self) -> dict[str, float]:
        """Return the load of the experts since the last call: mean over layers, and by layer."""
        layers = [mixture.statistics() for mixture in self.mixtures]
        means = {
            f"moe/{name}": sum(layer[name] for layer in layers) / len(layers)
            for name in (layers[0] if layers else ())
        }
        each = {
            f"moe/layer_{place}/{name}": value
            for place, layer in enumerate(layers)
            for name, value in layer.items()
        }
        return means | each


class Block(nn.Module):
    """Attention and feed-forward, each behind its own norm and on the residual stream."""

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        self.attention = make_attention(spec)
        self.feed_forward_norm = nn.RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        self.combine = spec.combine
        dense = spec.feed_forward_of(layer)
        self.feed_forward: nn.Module = (
            FeedForward(spec.hidden_size, dense.intermediate_size, spec.linear)
            if isinstance(dense, SwiGLU)
            else Mixture(spec)
        )

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        layer: dict[str, Tensor] | None = None,
        start: int = 0,
        visible_B1TT: Tensor | None = None,
    ) -> Tensor:
        """Return the residual stream (B x T x D) after this block.

        Args:
            x_BTD: The stream before it.
            rotation: Of these positions.
            layer: This block's tensors of a cache, if there is one.
            start: First position.
            visible_B1TT: Which positions each of them may read, if that is not all earlier ones.
        """
        attended_BTD = self.attention(
            self.attention_norm(x_BTD), rotation, layer, start, visible_B1TT
        )
        x_BTD = x_BTD + self._combined(attended_BTD)
        return x_BTD + self._combined(self.feed_forward(self.feed_forward_norm(x_BTD)))

    def _combined(self, y_BTD: Tensor) -> Tensor:
        """Return a branch's output as its combine delivers it; the gradient passes unchanged."""
        if self.combine is None:
            return y_BTD
        return (
            y_BTD + (round_in_tiles(y_BTD, self.combine.format, self.combine.tile) - y_BTD).detach()
        )


def _visible(documents_BT: Tensor | None) -> Tensor | None:
    """Return which positions of its own document each position may read (B x 1 x T x T)."""
    if documents_BT is None:
        return None
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT.tril().unsqueeze(1)


def _initialise(module: nn.Module, spec: DecoderSpec) -> None:
    for parameter in module.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=spec.initializer_range)
