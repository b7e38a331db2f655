"""Traffic of arXiv 2505.09343, sections 5.1 and 5.2: what bandwidth remains of the links'.

Every result is a multiple of the bandwidth of one network card. Suffixes: L directed links, E
endpoints, R rings.
"""

from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator
from scipy import sparse

from harness.config.base import Spec
from harness.systems.network_paths import Network
from harness.systems.network_routing import Floats, Routing, flows_between, link_loads, usage
from harness.systems.topologies import Topology, leaf_spine
from harness.systems.traffic import all_to_all, equal_flows_time, finish_times, max_min_rates

Order = Literal["strided", "shuffled"]
Failure = Literal["none", "spine", "leaf", "plane"]
Spread = Literal["even", "by_capacity"]


class Nodes(Spec):
    """Nodes of several GPUs, each with a network card, and what joins them.

    Cards of equal place in their nodes, a rail, share leaves.
    """

    gpus_per_node: PositiveInt
    endpoints_per_leaf: PositiveInt
    spines: PositiveInt


class Rings(Spec):
    """Data-parallel groups that gather or reduce over rings, one ring per network card of a node.

    With tensor parallelism over ``t`` GPUs a node is in ``t`` groups, each of which has ``1/t`` of
    its cards. Nodes keep all cards on one leaf.
    """

    nodes: PositiveInt
    gpus_per_node: PositiveInt
    nodes_per_leaf: PositiveInt
    spines: PositiveInt

    @model_validator(mode="after")
    def _whole(self) -> "Rings":
        if self.nodes % self.nodes_per_leaf:
            raise ValueError(f"nodes: found {self.nodes}, expected a multiple of nodes_per_leaf, "
                             f"{self.nodes_per_leaf}")  # fmt: skip
        return self


class Planes(Spec):
    """Endpoints with a port in each of several equal planes, which share their bandwidth."""

    leaves: int = Field(ge=2)
    spines: int = Field(ge=2)
    endpoints_per_leaf: PositiveInt


def all_to_all_bandwidth(network: Network, routing: Routing, seed: int = 0) -> float:
    """Return what every endpoint sends while it exchanges equal messages with all others.

    Args:
        network: Its links are as fast as network cards.
        routing: How paths are chosen.
        seed: Of the routing.
    """
    load_L = link_loads(network, all_to_all(network.endpoints), routing, seed)
    return (network.endpoints - 1) / equal_flows_time(load_L, np.ones(network.links))


def incast_rate(network: Network, senders: int, routing: Routing, seed: int = 0) -> float:
    """Return the slowest of as many equal flows as ``senders``, all to the last endpoint."""
    ends = np.stack([np.arange(senders), np.full(senders, network.endpoints - 1)], axis=1)
    usage_LF = usage(network, flows_between(ends), routing, seed)
    return float(max_min_rates(usage_LF, np.ones(network.links)).min())


def plane_bandwidth(
    nodes: int, spec: Nodes, nvlink: float, routing: Routing, seed: int = 0
) -> float:
    """Return the algorithm bandwidth of an all-to-all over one plane per GPU of a node.

    A message goes over NVLink to the GPU of its node that is in the plane of the receiver (NCCL's
    PXN), then through that plane. Algorithm bandwidth counts all messages of a GPU, those within
    the node too, as nccl-tests does.

    Args:
        nodes: All of whose GPUs take part; a multiple of a full leaf, or fewer than that.
        spec: A plane has one endpoint per node.
        nvlink: Bandwidth of a GPU's NVLink.
        routing: In each plane.
        seed: Planes draw different numbers.
    """
    network = Network(_leaves_of(nodes, spec, 1))
    demand_EE = spec.gpus_per_node * all_to_all(nodes)
    seeds = spec.gpus_per_node * seed + np.arange(spec.gpus_per_node)
    loads = (link_loads(network, demand_EE, routing, int(one)) for one in seeds)
    within_node = nodes * (spec.gpus_per_node - 1)
    slowest = max(equal_flows_time(load_L, np.ones(network.links)) for load_L in loads)
    return nodes * spec.gpus_per_node / max(slowest, within_node / nvlink)


def rail_bandwidth(
    nodes: int, spec: Nodes, nvlink: float, routing: Routing, forwarded: bool, seed: int = 0
) -> float:
    """Return the same bandwidth over a single plane that has all rails.

    Args:
        nodes: As for planes.
        spec: The network has one endpoint per GPU.
        nvlink: Bandwidth of a GPU's NVLink.
        routing: In the network.
        forwarded: Messages change rails over NVLink, as between planes; else through the network.
        seed: Of the routing.
    """
    rails = spec.gpus_per_node
    network = Network(_leaves_of(nodes, spec, rails))
    between = np.full((rails, rails), 1.0) if not forwarded else rails * np.eye(rails)
    load_L = link_loads(network, np.kron(between, all_to_all(nodes)), routing, seed)
    time = equal_flows_time(load_L, np.ones(network.links))
    within_node = nodes * (rails - 1) if forwarded else rails - 1
    return nodes * rails / max(time, within_node / nvlink)


def _leaves_of(nodes: int, spec: Nodes, rails: int) -> Topology:
    """Return a network whose endpoints are the nodes of the first rail, then of the second..."""
    filled = min(nodes, spec.endpoints_per_leaf)
    return leaf_spine(rails * nodes // filled, spec.spines, filled)


def ring_times(
    spec: Rings, order: Order, routing: Routing, queue_pairs: int, seed: int = 0
) -> Floats:
    """Return how long the ring of each network card of a node takes for one byte per hop.

    A ring all-gather and a ring reduce-scatter send the same bytes over the same hops. All hops of
    a ring move at one rate, so that a ring is one flow over the links of all its hops.

    Args:
        spec: Nodes and network.
        order: In which rings visit nodes: always to the same place on the next leaf, or at random.
        routing: How paths are chosen.
        queue_pairs: Among which every hop divides its bytes equally.
        seed: Of the routing, and of a random order.

    Returns:
        Shape (R,).
    """
    leaves, cards = spec.nodes // spec.nodes_per_leaf, spec.gpus_per_node
    network = Network(leaf_spine(leaves, spec.spines, spec.nodes_per_leaf * cards))
    visits = np.arange(spec.nodes).reshape(leaves, spec.nodes_per_leaf).T.ravel()
    if order == "shuffled":
        visits = np.random.default_rng(seed).permutation(visits)
    hops = np.stack([visits, np.roll(visits, -1)], axis=1)
    # Ring by ring: the pairs of cards of equal place in their nodes.
    pairs = (hops * cards + np.arange(cards)[:, None, None]).reshape(-1, 2)
    usage_LF = usage(network, flows_between(pairs, queue_pairs), routing, seed)
    hops_of_ring = np.full((spec.nodes * queue_pairs, 1), 1 / queue_pairs)
    usage_LR = sparse.csr_array(usage_LF @ sparse.kron(sparse.eye_array(cards), hops_of_ring))
    return finish_times(usage_LR, np.ones(network.links), np.ones(cards))


def group_bandwidth(times_R: Floats, groups: int) -> float:
    """Return the bus bandwidth of the groups that share the rings of a node, mean over groups.

    A group divides its bytes equally among its rings and is done when the last of them is.

    Args:
        times_R: Of ``ring_times``.
        groups: That each node is in, a divisor of its rings.
    """
    rings = len(times_R) // groups
    return float((rings / times_R.reshape(rings, groups).max(axis=0)).mean())


def bandwidth_after(
    spec: Planes, planes: int, failure: Failure, spread: Spread
) -> tuple[float, float]:
    """Return the all-to-all bandwidth per endpoint after something failed, and the share of pairs.

    Messages are sprayed over all paths of the planes that still join their ends. With a leaf or
    plane the bandwidth is that of the slowest endpoint.

    Args:
        spec: Of each plane.
        planes: Their number; the bandwidth of an endpoint stays the same in all.
        failure: What fails in the first plane.
        spread: Whether planes carry equal shares, or shares like their spines.

    Returns:
        The bandwidth among the pairs that are joined, and their share of all pairs.
    """
    endpoints = spec.leaves * spec.endpoints_per_leaf
    pairs_EE = all_to_all(endpoints)
    joined = [_joined(spec, failure) if plane == 0 else pairs_EE for plane in range(planes)]
    spines = np.full(planes, spec.spines)
    spines[0] -= failure == "spine"
    strength = spines if spread == "by_capacity" else np.ones(planes)
    total_EE = sum(weight * some for weight, some in zip(strength, joined, strict=True))
    shares = [
        np.divide(weight * some, total_EE, out=np.zeros_like(total_EE), where=total_EE > 0)
        for weight, some in zip(strength, joined, strict=True)
    ]
    times = []
    for plane in range(planes):
        network = Network(leaf_spine(spec.leaves, int(spines[plane]), spec.endpoints_per_leaf))
        load_L = link_loads(network, shares[plane], "sprayed")
        times.append(equal_flows_time(load_L, np.full(network.links, 1 / planes)))
    partners_E = (total_EE > 0).sum(axis=1)
    bandwidth = partners_E.max() / max(times) if partners_E.any() else 0.0
    return float(bandwidth), float(partners_E.sum() / pairs_EE.sum())


def _joined(spec: Planes, failure: Failure) -> Floats:
    """Return which pairs of endpoints a plane still joins."""
    pairs_EE = all_to_all(spec.leaves * spec.endpoints_per_leaf)
    if failure == "plane":
        return np.zeros_like(pairs_EE)
    if failure == "leaf":
        pairs_EE[: spec.endpoints_per_leaf] = pairs_EE[:, : spec.endpoints_per_leaf] = 0
    return pairs_EE
