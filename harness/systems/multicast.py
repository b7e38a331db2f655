"""Copies of a token that its sender puts on the wire, and that its owner gets back.

arXiv 2505.09343, sections 4.3 and 6.5: dispatch sends a token to all of its experts, combine adds
up what they return. A network that multiplies on the way needs one copy of the sender, one that
adds up on the way delivers one sum.
"""

from typing import Literal

from harness.config.decoder_schema import MixtureOfExperts
from harness.systems.node_routing import expected_groups

# expert: one for each; node: one for each node, which spreads and adds up inside (NVLink);
# limited_node: at most so many, with the mixture's limit of nodes; network: one, which the network
# multiplies and adds up.
Scheme = Literal["expert", "node", "limited_node", "network"]
SCHEMES: tuple[Scheme, ...] = ("expert", "node", "limited_node", "network")


def copies(moe: MixtureOfExperts, scheme: Scheme) -> float:
    """Return the copies of a token at its sender, all choices of experts being equal.

    Every group of experts is on a node of its own, and the token's own node counts like others.
    ``node`` is a mean, ``limited_node`` a bound.
    """
    chosen = moe.num_experts_per_tok
    match scheme:
        case "expert":
            return chosen
        case "node":
            return expected_groups(moe.n_routed_experts, moe.n_group, chosen)
        case "limited_node":
            return min(moe.topk_group, chosen)
        case "network":
            return 1
