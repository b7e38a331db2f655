"""To how many nodes a token is sent whose experts are grouped by node.

Shape suffixes: N tokens, E routed experts, K experts of a token.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from harness.config.base import Spec
from harness.config.decoder_schema import MixtureOfExperts
from harness.models.routing import route
from harness.records.record import Record, record
from harness.systems.decoders import Models


class Routing(Spec):
    """A simulation of tokens whose scores are independent and equally distributed."""

    draws: PositiveInt
    seed: NonNegativeInt


def touched_nodes(models: Models, routing: Routing) -> Iterator[Record]:
    """Yield how many nodes a token is sent to if each holds one group of experts.

    ``limit`` is none, or groups: the router of the model chooses the best ``topk_group`` of them
    first (arXiv 2412.19437, section 2.1.2). A mean is over tokens with independent scores.

    Args:
        models: By name; those without groups of experts yield nothing.
        routing: The simulation.
    """
    for name, spec in models.items():
        moe = spec.feed_forward
        if not isinstance(moe, MixtureOfExperts) or moe.n_group == 1:
            continue
        experts, groups, chosen = moe.n_routed_experts, moe.n_group, moe.num_experts_per_tok
        values = [
            ("none", "mean", "closed_form", expected_groups(experts, groups, chosen)),
            ("none", "max", "closed_form", min(groups, chosen)),
            ("groups", "max", "closed_form", min(moe.topk_group, chosen)),
        ]
        for limit, open_groups in (("none", groups), ("groups", moe.topk_group)):
            touched = simulated_groups(moe, open_groups, routing)
            values += [(limit, "mean", "simulated", float(touched.double().mean())),
                       (limit, "max", "simulated", float(touched.max()))]  # fmt: skip
        for limit, statistic, method, value in values:
            yield record("routing/nodes", value, "nodes", model=name,
                         limit=limit, statistic=statistic, method=method)  # fmt: skip


def expected_groups(experts: int, groups: int, chosen: int) -> float:
    """Return the mean number of groups that ``chosen`` experts are in, all choices being equal.

    The linearity of expectation: a group is left out with probability
    ``C(experts - experts / groups, chosen) / C(experts, chosen)``.
    """
    others = math.comb(experts - experts // groups, chosen)
    return groups * (1 - others / math.comb(experts, chosen))


def simulated_groups(moe: MixtureOfExperts, open_groups: int, routing: Routing) -> Tensor:
    """Return the number of groups that each drawn token's experts are in, by the models' router.

    Args:
        moe: The mixture.
        open_groups: Best groups that a token may be sent to, in place of the mixture's own number.
        routing: The simulation.
    """
    limited = moe.model_copy(update={"topk_group": open_groups})
    generator = torch.Generator().manual_seed(routing.seed)
    logits_NE = torch.randn(
        routing.draws, moe.n_routed_experts, generator=generator, dtype=torch.float64
    )
    experts_NK = route(logits_NE, torch.zeros(moe.n_routed_experts), limited).experts_NK
    groups_NK = experts_NK // (moe.n_routed_experts // moe.n_group)
    return F.one_hot(groups_NK, moe.n_group).amax(dim=1).sum(dim=1)
