"""Cross-entropy of an output head, without holding all logits where the vocabulary is large.

Shape suffixes: B batch, T positions, N all positions of the batch, C positions of a chunk, D hidden
size, V vocabulary.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

IGNORED = -100
# Below, the logits of a batch are smaller than the states of a few layers, and one product over all
# positions is faster than several.
LARGE_VOCABULARY = 1 << 14
# Logits that exist at a time: 256 MiB in float32.
CHUNK_LOGITS = 1 << 26


def token_loss(
    features_BTD: Tensor,
    head: nn.Module,
    targets_BT: Tensor,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Return the cross-entropy in nats of ``targets_BT`` under the logits of ``head``.

    Vocabularies of ``LARGE_VOCABULARY`` tokens and more are taken in chunks of positions, whose
    logits exist one chunk at a time; the value is the same up to rounding.

    Args:
        features_BTD: What the head reads.
        head: A linear layer without bias.
        targets_BT: Token ids; ``IGNORED`` (-100) does not count.
        reduction: Mean over the targets that count, or their sum.
    """
    weight_VD = cast(Tensor, head.weight)
    if len(weight_VD) < LARGE_VOCABULARY:
        return cross_entropy(head(features_BTD), targets_BT, reduction)
    total = _ChunkedLoss.apply(features_BTD.flatten(0, 1), weight_VD, targets_BT.flatten())
    return total if reduction == "sum" else total / (targets_BT != IGNORED).sum()


def cross_entropy(
    logits_BTV: Tensor, targets_BT: Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Return the cross-entropy in nats; targets of ``IGNORED`` (-100) do not count."""
    return F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction=reduction
    )


class _ChunkedLoss(torch.autograd.Function):
    """The sum of cross-entropies; ``apply(features, weight, targets)``.

    As in Liger Kernel (Hsu et al., arXiv 2410.10989, section 3.2): the gradients are linear in the
    one that comes from above, so each chunk computes its own while its logits are there, and
    backward only scales them. That saves the logits and a second product for them. Products run in
    autocast's type; the softmax is float32 or wider, and so is the sum of the weight's gradients.
    """

    @staticmethod
    def forward(ctx: Any, features_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        dtype = _product_type(features_ND)
        states_ND, head_VD = features_ND.to(dtype), weight_VD.to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=features_ND.device)
        wanted = any(ctx.needs_input_grad[:2])
        by_features_ND = torch.empty_like(states_ND) if wanted else None
        by_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if wanted else None
        rows = max(1, CHUNK_LOGITS // len(weight_VD))
        with torch.autocast(features_ND.device.type, enabled=False):
            for start in range(0, len(states_ND), rows):
                chunk = slice(start, start + rows)
                logits_CV = (states_ND[chunk] @ head_VD.mT).to(wide)
                loss, by_logits_CV = _chunk(logits_CV, targets_N[chunk], wanted)
                total += loss
                if by_features_ND is not None and by_weight_VD is not None:
                    by_logits_CV = by_logits_CV.to(dtype)
                    torch.mm(by_logits_CV, head_VD, out=by_features_ND[chunk])
                    by_weight_VD += by_logits_CV.mT @ states_ND[chunk]
        ctx.save_for_backward(by_features_ND, by_weight_VD)
        ctx.dtypes = features_ND.dtype, weight_VD.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        by_features_ND, by_weight_VD = ctx.saved_tensors
        of_features, of_weight = ctx.dtypes
        return (
            (by_features_ND * gradient).to(of_features),
            (by_weight_VD * gradient).to(of_weight),
            None,
        )


def _product_type(features_ND: Tensor) -> torch.dtype:
    device = features_ND.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return features_ND.dtype


def _chunk(logits_CV: Tensor, targets_C: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
    """Return the sum of a chunk's losses and, if wanted, its gradient by the logits (C x V)."""
    counts_C1 = (targets_C != IGNORED)[:, None]
    places_C1 = torch.where(counts_C1, targets_C[:, None], 0)
    log_probabilities_CV = logits_CV.log_softmax(-1)
    losses_C1 = -log_probabilities_CV.gather(1, places_C1)
    loss = losses_C1.masked_fill(~counts_C1, 0).sum()
    if not wanted:
        return loss, log_probabilities_CV
    by_logits_CV = log_probabilities_CV.exp_()
    by_logits_CV.scatter_add_(1, places_C1, -torch.ones_like(losses_C1))
    return loss, by_logits_CV.masked_fill_(~counts_C1, 0)
