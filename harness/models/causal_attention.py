"""Causal softmax attention of the newest positions, by the kernel that suits the shapes.

Shape suffixes: B batch, N query heads, K key-value heads, G query heads per key-value head,
T newest positions, S all positions, H width of queries and keys, V width of values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSV: Tensor,
    scale: float,
    visible_B1SS: Tensor | None = None,
) -> Tensor:
    """Return what the last T of S positions read from themselves and earlier ones (B x N x T x V).

    Args:
        q_BNTH: Queries of the last T positions; N is a multiple of K.
        k_BKSH: Keys of all positions.
        v_BKSV: Values of all positions.
        scale: Of the scores, before the softmax.
        visible_B1SS: Which positions each of them may read, if that is not all earlier ones; only
            for queries of all positions.
    """
    if q_BNTH.shape[2] == k_BKSH.shape[2]:
        return _from_the_start(q_BNTH, k_BKSH, v_BKSV, scale, visible_B1SS)
    assert visible_B1SS is None
    return _continued(q_BNTH, k_BKSH, v_BKSV, scale)


def _from_the_start(
    q_BNSH: Tensor, k_BKSH: Tensor, v_BKSV: Tensor, scale: float, visible_B1SS: Tensor | None
) -> Tensor:
    kind, dtype = v_BKSV.device.type, v_BKSV.dtype
    if kind == "cpu" and dtype == torch.bfloat16:
        # For short sequences its backward pass takes four times as long as that of float32.
        with torch.autocast(kind, enabled=False):
            wide = q_BNSH.float(), k_BKSH.float(), v_BKSV.float()
            mixed_BNSV = _from_the_start(*wide, scale, visible_B1SS)
        return mixed_BNSV.to(dtype)
    # Torch's flash kernels, on a CPU as on CUDA, want values as wide as keys; without one, all
    # S x S scores are kept. Columns of zeros add columns of zeros to the result.
    width = v_BKSV.shape[3]
    v_BKSH = F.pad(v_BKSV, (0, max(0, k_BKSH.shape[3] - width)))
    mixed_BNSH = F.scaled_dot_product_attention(
        q_BNSH,
        k_BKSH,
        v_BKSH,
        attn_mask=visible_B1SS,
        is_causal=visible_B1SS is None,
        scale=scale,
        enable_gqa=q_BNSH.shape[1] != k_BKSH.shape[1],
    )
    return mixed_BNSH[..., :width]


def _continued(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSV: Tensor, scale: float) -> Tensor:
    batch, heads, new, width = q_BNTH.shape
    groups, length = k_BKSH.shape[1:3]
    # Heads that share keys become rows of one product: what is cached is read once for all.
    q_BKGTH = q_BNTH.reshape(batch, groups, heads // groups, new, width)
    q_BKQH = q_BKGTH.flatten(2, 3)
    visible_QS = None
    if new > 1:
        visible_TS = torch.ones(new, length, dtype=torch.bool, device=q_BNTH.device)
        visible_QS = visible_TS.tril(length - new).repeat(heads // groups, 1)
    if v_BKSV.shape[3] == width:
        mixed_BKQV = F.scaled_dot_product_attention(
            q_BKQH, k_BKSH, v_BKSV, attn_mask=visible_QS, scale=scale
        )
    else:
        mixed_BKQV = _explicit(q_BKQH, k_BKSH, v_BKSV, scale, visible_QS)
    return mixed_BKQV.reshape(batch, heads, new, -1)


def _explicit(
    q_BKQH: Tensor, k_BKSH: Tensor, v_BKSV: Tensor, scale: float, visible_QS: Tensor | None
) -> Tensor:
    # Few queries, so their scores are small. Padding the values would copy all that is cached, and
    # torch's kernel for unequal widths has one block for a head, however long the sequence.
    scores_BKQS = (q_BKQH * scale) @ k_BKSH.transpose(2, 3)
    if visible_QS is not None:
        scores_BKQS = scores_BKQS.masked_fill(~visible_QS, float("-inf"))
    return scores_BKQS.softmax(-1) @ v_BKSV
