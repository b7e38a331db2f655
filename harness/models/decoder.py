"""A Llama-style decoder.

Shape suffixes: B batch, T positions, D hidden size, N query heads, K key-value heads, H head width,
V vocabulary.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.model_schema import DecoderSpec


class Decoder(nn.Module):
    """Token embedding, pre-norm residual blocks, a final norm and an output head.

    Follows Llama (Touvron et al., arXiv 2302.13971; grouped queries: Ainslie et al., arXiv
    2305.13245), weight for weight as in the `transformers` implementation.

    Attributes:
        companion_parameters: Patterns of the parameters that are not hidden matrices.
        layer_kinds: Patterns of the hidden matrices whose precision is compared, by kind of layer.
    """

    layer_kinds: ClassVar[dict[str, str]] = {
        "mlp_up": r"\.feed_forward\.up\.",
        "mlp_down": r"\.feed_forward\.down\.",
        "attention_qkv": r"\.attention\.(query|key|value)\.",
        "attention_out": r"\.attention\.output\.",
    }

    def __init__(self, spec: DecoderSpec, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, spec.hidden_size)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.num_hidden_layers))
        self.norm = nn.RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        self.head = nn.Linear(spec.hidden_size, vocab_size, bias=False)
        self.companion_parameters: tuple[str, ...] = (r"^embedding\.", r"^head\.")
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=spec.initializer_range)
        if spec.tie_word_embeddings:
            self.head.weight = self.embedding.weight
            self.companion_parameters = (r"^embedding\.",)
        self.rope_theta, self.head_dim = spec.rope_theta, spec.head_dim

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return logits (B x T x V) for the token after each position."""
        return self.head(self.features(tokens_BT))

    def features(self, tokens_BT: Tensor) -> Tensor:
        """Return the normalised states (B x T x D) that the output head reads."""
        rotation = rotary_angles(
            tokens_BT.shape[1], self.head_dim, self.rope_theta, tokens_BT.device
        )
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotation)
        return self.norm(x_BTD)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats of ``targets_BT``; -100 is ignored."""
        logits_BTV = self(tokens_BT)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())


class Block(nn.Module):
    """Attention and feed-forward, each behind its own norm and on the residual stream."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        self.attention = Attention(spec)
        self.feed_forward_norm = nn.RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        self.feed_forward = FeedForward(spec)

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Return the residual stream (B x T x D) after this block."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        queries = spec.attention.num_attention_heads * self.head_dim
        keys = spec.attention.num_key_value_heads * self.head_dim
        self.query = nn.Linear(spec.hidden_size, queries, bias=False)
        self.key = nn.Linear(spec.hidden_size, keys, bias=False)
        self.value = nn.Linear(spec.hidden_size, keys, bias=False)
        self.output = nn.Linear(queries, spec.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Return what each position reads from itself and earlier ones (B x T x D)."""
        heads = (len(x_BTD), x_BTD.shape[1], -1, self.head_dim)
        q_BNTH = rotate(self.query(x_BTD).view(heads).transpose(1, 2), rotation)
        k_BKTH = rotate(self.key(x_BTD).view(heads).transpose(1, 2), rotation)
        v_BKTH = self.value(x_BTD).view(heads).transpose(1, 2)
        mixed_BNTH = F.scaled_dot_product_attention(
            q_BNTH, k_BKTH, v_BKTH, is_causal=True, enable_gqa=q_BNTH.shape[1] != k_BKTH.shape[1]
        )
        return self.output(mixed_BNTH.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        width = spec.feed_forward.intermediate_size
        self.gate = nn.Linear(spec.hidden_size, width, bias=False)
        self.up = nn.Linear(spec.hidden_size, width, bias=False)
        self.down = nn.Linear(width, spec.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the transformed states (B x T x D)."""
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


def rotary_angles(
    length: int, head_dim: int, theta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine (T x H) of the rotary angles (Su et al., arXiv 2104.09864)."""
    exponent = torch.arange(0, head_dim, 2, device=device).float() / head_dim
    frequency = theta**-exponent
    angle_TH = torch.outer(torch.arange(length, device=device).float(), frequency).repeat(1, 2)
    return angle_TH.cos(), angle_TH.sin()


def rotate(x_BNTH: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Return ``x_BNTH`` with its halves rotated against each other by position."""
    cosine_TH, sine_TH = (part.to(x_BNTH.dtype) for part in rotation)
    first, second = x_BNTH.chunk(2, dim=-1)
    return x_BNTH * cosine_TH + torch.cat((-second, first), dim=-1) * sine_TH
