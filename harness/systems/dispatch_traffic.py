"""What it takes to dispatch tokens to experts on other GPUs and nodes.

arXiv 2505.09343, section 4.3: a token is sent once to every node that has some of its experts, to
the GPU with the sender's place there, which passes it on over NVLink.

Shape suffixes: N tokens, K experts of a token, G GPUs, M nodes, E routed experts.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from harness.config.base import Spec, validate
from harness.config.decoder_schema import MixtureOfExperts
from harness.errors import UserError
from harness.models.routing import route

# forwarded: once per node, then over NVLink; per_gpu: once per GPU; per_expert: once per expert.
Scheme = Literal["forwarded", "per_gpu", "per_expert"]


class Dispatch(Spec):
    """Tokens with independent scores and the experts that they may go to."""

    experts: PositiveInt
    experts_per_token: PositiveInt
    node_limit: PositiveInt = Field(description="nodes that limited routing may send a token to")
    gpus_per_node: PositiveInt
    draws: PositiveInt
    seed: NonNegativeInt

    def mixture(self, nodes: int, limited: bool) -> MixtureOfExperts:
        """Return the mixture with one group of experts per node.

        Raises:
            UserError: If there is none.
        """
        gpus = nodes * self.gpus_per_node
        if self.experts % gpus:
            raise UserError(f"nodes: found {nodes}, expected {gpus} GPUs to divide the experts, "
                            f"{self.experts}")  # fmt: skip
        open_nodes = min(self.node_limit, nodes) if limited else nodes
        numbers = {"moe_intermediate_size": 1, "n_routed_experts": self.experts,
                   "num_experts_per_tok": self.experts_per_token, "n_group": nodes,
                   "topk_group": open_nodes}  # fmt: skip
        return validate(MixtureOfExperts, numbers, f"{nodes} nodes")


@dataclass(frozen=True)
class Messages:
    """Mean messages of a token, of which every GPU sends and receives equally many.

    Attributes:
        nodes: That have some of its experts, the sender's own among them.
        network: To other nodes.
        nvlink: Within nodes.
    """

    nodes: float
    network: float
    nvlink: float

    def token_bandwidth(self, network: float, nvlink: float) -> float:
        """Return the bytes of tokens that a GPU can dispatch per second.

        The network and NVLink work at the same time.

        Args:
            network: Bandwidth of a GPU's network card.
            nvlink: Bandwidth of a GPU's NVLink.
        """
        return 1 / max(self.network / network, self.nvlink / nvlink)


def chosen_experts(spec: Dispatch, nodes: int, limited: bool) -> Tensor:
    """Return the experts of every drawn token (N x K), by DeepSeek-V3's router.

    Args:
        spec: Experts and tokens.
        nodes: Over which the experts are spread evenly, in order.
        limited: Whether a token is kept to its best ``node_limit`` nodes.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    logits_NE = torch.randn(spec.draws, spec.experts, generator=generator, dtype=torch.float64)
    return route(logits_NE, torch.zeros(spec.experts), spec.mixture(nodes, limited)).experts_NK


def messages(spec: Dispatch, nodes: int, limited: bool, scheme: Scheme) -> Messages:
    """Return the messages of a token whose sender is the first GPU.

    Scores are alike for all experts, so that any other sender has as many on average.

    Args:
        spec: Experts and tokens.
        nodes: Of ``gpus_per_node`` GPUs, over which the experts are spread evenly, in order.
        limited: Whether a token is kept to its best ``node_limit`` nodes.
        scheme: How it gets to them.
    """
    gpus = nodes * spec.gpus_per_node
    experts_NK = chosen_experts(spec, nodes, limited)
    per_gpu_NG = F.one_hot(experts_NK * gpus // spec.experts, gpus).sum(dim=1).double()
    per_gpu_NMG = per_gpu_NG.unflatten(1, (nodes, spec.gpus_per_node))
    if scheme != "per_expert":
        per_gpu_NMG = per_gpu_NMG.clamp(max=1)
    touched_NM = per_gpu_NMG.amax(dim=2).clamp(max=1)
    if scheme == "forwarded":
        network, nvlink = touched_NM[:, 1:], per_gpu_NMG[:, :, 1:]
    else:
        network, nvlink = per_gpu_NMG[:, 1:], per_gpu_NMG[:, 0, 1:]
    return Messages(*(float(each.sum() / spec.draws) for each in (touched_NM, network, nvlink)))
