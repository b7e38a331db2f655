"""Which experts a token goes to, and the losses that keep their load even.

Shape suffixes: N tokens, E routed experts, K experts of a token, G groups of experts, A = N x K
assignments of tokens to experts, B parts of the batch that are balanced each.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.config.decoder_schema import MixtureOfExperts

# Keeps the sum that weights are divided by above zero; DeepSeek-V3's published value.
SMALLEST_SUM = 1e-20


@dataclass(frozen=True)
class Routing:
    """The choice of a batch of tokens.

    Attributes:
        experts_NK: The chosen experts, in no particular order.
        weights_NK: Factors of their outputs.
        scores_NE: Affinities of all experts, before any bias.
    """

    experts_NK: Tensor
    weights_NK: Tensor
    scores_NE: Tensor


def route(logits_NE: Tensor, bias_E: Tensor, moe: MixtureOfExperts) -> Routing:
    """Choose experts by biased score and weigh them by the score itself.

    DeepSeek-V3 (arXiv 2412.19437), eq. 13-16; with softmax and no bias DeepSeek-V2 (arXiv
    2405.04434), section 2.2.1.

    Args:
        logits_NE: Products of the tokens with the centroids of the experts.
        bias_E: Added for the choice alone.
        moe: The mixture.
    """
    sigmoid = moe.scoring_func == "sigmoid"
    scores_NE = logits_NE.sigmoid() if sigmoid else logits_NE.softmax(dim=-1)
    experts_NK = _best(scores_NE.detach() + bias_E, moe)
    weights_NK = scores_NE.gather(-1, experts_NK)
    if moe.norm_topk_prob:
        weights_NK = weights_NK / (weights_NK.sum(dim=-1, keepdim=True) + SMALLEST_SUM)
    return Routing(experts_NK, weights_NK * moe.routed_scaling_factor, scores_NE)


def _best(choice_NE: Tensor, moe: MixtureOfExperts) -> Tensor:
    """Return the best experts (N x K) of the best groups (DeepSeek-V3, section 2.1.2)."""
    if moe.n_group > 1:
        choice_NGE = choice_NE.unflatten(-1, (moe.n_group, -1))
        counted = 2 if moe.group_score == "sum_of_top_two" else 1
        ranks_NG = choice_NGE.topk(counted, dim=-1).values.sum(dim=-1)
        groups = ranks_NG.topk(moe.topk_group, dim=-1, sorted=False).indices
        closed_NG = torch.ones_like(ranks_NG, dtype=torch.bool).scatter_(-1, groups, False)
        choice_NE = choice_NGE.masked_fill(closed_NG.unsqueeze(-1), -math.inf).flatten(1)
    return choice_NE.topk(moe.num_experts_per_tok, dim=-1, sorted=False).indices


def within_capacity(routing: Routing, moe: MixtureOfExperts) -> Tensor:
    """Return the chosen experts (N x K), those that have no room for the token replaced by E.

    An expert takes ``capacity_factor`` times its even share of the assignments, rounded up, and
    drops the tokens of lowest affinity (DeepSeek-V2, arXiv 2405.04434, section 2.2.4, where the
    share is that of a device).
    """
    assert moe.capacity_factor is not None
    experts_A = routing.experts_NK.flatten()
    capacity = math.ceil(moe.capacity_factor * len(experts_A) / moe.n_routed_experts)
    affinities_A = routing.scores_NE.detach().gather(-1, routing.experts_NK).flatten()
    by_affinity_A = affinities_A.argsort(descending=True, stable=True)
    sorted_A, places_A = experts_A[by_affinity_A].sort(stable=True)
    # In this order an assignment's rank at its expert is its distance from the expert's first.
    ranks_A = torch.arange(len(sorted_A), device=sorted_A.device) - torch.searchsorted(
        sorted_A, sorted_A
    )
    dropped_A = torch.empty_like(ranks_A, dtype=torch.bool)
    dropped_A[by_affinity_A[places_A]] = ranks_A >= capacity
    return experts_A.masked_fill(dropped_A, moe.n_routed_experts).view_as(routing.experts_NK)


def balance_loss(routing: Routing, sequences: int, moe: MixtureOfExperts) -> Tensor:
    """Return the weighted sum of the mixture's balance losses, 0 without any.

    Sequence-wise (DeepSeek-V3, eq. 17-20) and batch-wise losses (section 4.5.3) count the experts
    of highest score and normalise scores; the auxiliary loss (DeepSeek-V2, section 2.2.3, and the
    baseline of arXiv 2408.15664) counts the experts that were chosen and takes scores as they are.

    Args:
        routing: Of ``sequences`` of equal length, one after the other.
        sequences: Their number.
        moe: The mixture, with the weights of the losses.
    """
    balance, scores_NE = moe.balance, routing.scores_NE
    loss = scores_NE.new_zeros(())
    if balance.sequence_loss or balance.batch_loss:
        best_NK = scores_NE.detach().topk(moe.num_experts_per_tok, dim=-1, sorted=False).indices
        affinities_NE = scores_NE / scores_NE.sum(dim=-1, keepdim=True)
        for weight, parts in ((balance.sequence_loss, sequences), (balance.batch_loss, 1)):
            if weight:
                loss = loss + weight * _imbalance(best_NK, affinities_NE, parts)
    if balance.auxiliary_loss:
        loss = loss + balance.auxiliary_loss * _imbalance(routing.experts_NK, scores_NE, 1)
    return loss


def _imbalance(experts_NK: Tensor, affinities_NE: Tensor, parts: int) -> Tensor:
    """Return sum_i f_i P_i, averaged over equal parts of the tokens.

    f_i is the share of the assignments that expert i has, times the number of experts, and P_i its
    mean affinity.
    """
    experts_BA = experts_NK.reshape(parts, -1)
    mean_BE = affinities_NE.unflatten(0, (parts, -1)).mean(dim=1)
    one = mean_BE.new_ones(()).expand_as(experts_BA)
    counts_BE = torch.zeros_like(mean_BE).scatter_add_(1, experts_BA, one)
    loads_BE = counts_BE * (mean_BE.shape[1] / experts_BA.shape[1])
    return (loads_BE * mean_BE).sum(dim=1).mean()
