"""Multi-head latent attention: keys and values of all heads come from one narrow latent.

Shape suffixes: B batch, T positions, S positions in the cache, D hidden size, N heads, P width of
a head without positions (nope), R width with rotary ones (rope), H both, V width of values, L
latent, W latent and rotary key.
"""

import torch
from torch import Tensor, nn

from harness.config.decoder_schema import DecoderSpec, MultiHeadLatentAttention
from harness.models.cache import store
from harness.models.causal_attention import causal_attention
from harness.models.linear import Linear
from harness.models.rotary import Rotation, rotate_pairs

# In the released code and in `transformers`, whatever the other norms have.
LATENT_NORM_EPS = 1e-6


class LatentAttention(nn.Module):
    """Latent attention of DeepSeek-V2 and V3 (arXiv 2412.19437, eq. 1-11).

    A position leaves behind a normalised latent and one rotated key that all heads share. Keys and
    values of each head are linear in the latent. So a cache may hold those of every head, or the
    latent: then their matrices are applied to the queries and to the result instead (absorbed),
    which costs more operations for a pair of positions and reads much less memory. These two
    products are never in FP8.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        options = spec.attention
        assert isinstance(options, MultiHeadLatentAttention)
        self.heads, self.scale = options.num_attention_heads, spec.head_dim**-0.5
        self.nope_dim, self.rope_dim = options.qk_nope_head_dim, options.qk_rope_head_dim
        self.value_dim, self.latent_dim = options.v_head_dim, options.kv_lora_rank
        width, fp8 = spec.hidden_size, spec.linear
        queries = self.heads * spec.head_dim
        if options.q_lora_rank is None:
            self.query = Linear(width, queries, fp8=fp8)
        else:
            self.query_down = Linear(width, options.q_lora_rank, fp8=fp8)
            self.query_norm = nn.RMSNorm(options.q_lora_rank, eps=LATENT_NORM_EPS)
            self.query_up = Linear(options.q_lora_rank, queries, fp8=fp8)
        self.has_query_latent = options.q_lora_rank is not None
        self.key_value_down = Linear(width, self.latent_dim, fp8=fp8)
        self.key_value_norm = nn.RMSNorm(self.latent_dim, eps=LATENT_NORM_EPS)
        self.key_rope = Linear(width, self.rope_dim, fp8=fp8)
        keys_and_values = self.heads * (self.nope_dim + self.value_dim)
        self.key_value_up = Linear(self.latent_dim, keys_and_values, fp8=fp8)
        self.output = Linear(self.heads * self.value_dim, width, fp8=fp8)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        layer: dict[str, Tensor] | None = None,
        start: int = 0,
        visible_B1TT: Tensor | None = None,
    ) -> Tensor:
        """Return what each position reads from itself and earlier ones (B x T x D).

        Args:
            x_BTD: States of the positions.
            rotation: Of these positions.
            layer: This layer's tensors of a cache, of which the positions before ``start`` are
                read; takes in the new ones.
            start: Position of the first state.
            visible_B1TT: Which positions each of them may read, if that is not all earlier ones.
        """
        q_BNTH = self._queries(x_BTD, rotation)
        latent_BTL = _normalised(self.key_value_norm, self.key_value_down(x_BTD))
        rope_B1TR = rotate_pairs(self.key_rope(x_BTD).unsqueeze(1), rotation)
        if layer is not None and "latent" in layer:
            states_B1TW = torch.cat((latent_BTL.unsqueeze(1), rope_B1TR), dim=-1)
            states_B1SW = store(layer["latent"], states_B1TW.to(q_BNTH.dtype), start)
            # Nothing was cached before the first positions, whose keys and values are at hand.
            if start > 0:
                return self.output(self._absorbed(q_BNTH, states_B1SW))
        k_BNSH, v_BNSV = self._expand(latent_BTL, rope_B1TR)
        if layer is not None and "key" in layer:
            k_BNSH = store(layer["key"], k_BNSH, start)
            v_BNSV = store(layer["value"], v_BNSV, start)
        mixed_BNTV = causal_attention(q_BNTH, k_BNSH, v_BNSV, self.scale, visible_B1TT)
        return self.output(mixed_BNTV.transpose(1, 2).flatten(2))

    def _queries(self, x_BTD: Tensor, rotation: Rotation) -> Tensor:
        if self.has_query_latent:
            q = self.query_up(_normalised(self.query_norm, self.query_down(x_BTD)))
        else:
            q = self.query(x_BTD)
        q_BNTH = q.unflatten(2, (self.heads, -1)).transpose(1, 2)
        nope_BNTP, rope_BNTR = q_BNTH.split((self.nope_dim, self.rope_dim), dim=-1)
        return torch.cat((nope_BNTP, rotate_pairs(rope_BNTR, rotation)), dim=-1)

    def _expand(self, latent_BTL: Tensor, rope_B1TR: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys (B x N x T x H) and values (B x N x T x V) of all heads."""
        heads = self.key_value_up(latent_BTL).unflatten(2, (self.heads, -1)).transpose(1, 2)
        nope_BNTP, v_BNTV = heads.split((self.nope_dim, self.value_dim), dim=-1)
        rope_BNTR = rope_B1TR.expand(-1, self.heads, -1, -1)
        return torch.cat((nope_BNTP, rope_BNTR), dim=-1), v_BNTV

    def _absorbed(self, q_BNTH: Tensor, states_B1SW: Tensor) -> Tensor:
        """Return the mixed values of all heads, side by side (B x T x NV)."""
        weight = self.key_value_up.weight.unflatten(0, (self.heads, -1))
        to_key_NPL, to_value_NVL = weight.split((self.nope_dim, self.value_dim), dim=1)
        nope_BNTP, rope_BNTR = q_BNTH.split((self.nope_dim, self.rope_dim), dim=-1)
        q_BNTL = torch.einsum("bntp,npl->bntl", nope_BNTP, to_key_NPL)
        q_BNTW = torch.cat((q_BNTL, rope_BNTR), dim=-1)
        latents_B1SL = states_B1SW[..., : self.latent_dim]
        # One key and value for all heads, as in multi-query attention.
        mixed_BNTL = causal_attention(q_BNTW, states_B1SW, latents_B1SL, self.scale)
        mixed_BTNV = torch.einsum("bntl,nvl->btnv", mixed_BNTL, to_value_NVL)
        return mixed_BTNV.flatten(2)


def _normalised(norm: nn.RMSNorm, latent_BTL: Tensor) -> Tensor:
    # Under autocast a latent is narrower than the weights of its norm, for which torch has no
    # fused kernel.
    return norm(latent_BTL.to(norm.weight.dtype))
