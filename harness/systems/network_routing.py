"""How flows are routed over a network's shortest paths, and what that puts on each link.

Four ways:

- static: the destination decides, as it does in tables that are set up once.
- ecmp: a hash of the flow decides, and the flow stays on its path.
- sprayed: all paths carry the same share, as if packet by packet and blind to load.
- adaptive: the flow is cut into equal pieces, which go one after the other, in random order, to the
  path whose busiest link is least busy.

Shape suffixes: L directed links, F flows, P paths, H links of a path, E endpoints, M leaves.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from harness.systems.network_paths import NO_LINK, Flows, Network, Paths

Routing = Literal["static", "ecmp", "sprayed", "adaptive"]
Floats = NDArray[np.float64]
# Into how many pieces adaptive routing cuts a flow at least; more if it has more paths.
PIECES = 16
# Flows whose paths are found at once; bounds memory.
CHUNK = 1 << 18


def flows_between(pairs: NDArray[np.int64], queue_pairs: int = 1) -> Flows:
    """Return ``queue_pairs`` flows between every pair of endpoints, those of a pair in a row.

    Args:
        pairs: Source and destination, shape (pairs, 2).
        queue_pairs: Flows per pair.
    """
    repeated = np.repeat(pairs, queue_pairs, axis=0)
    return Flows(repeated[:, 0], repeated[:, 1], np.tile(np.arange(queue_pairs), len(pairs)))


def usage(network: Network, flows: Flows, routing: Routing, seed: int = 0) -> sparse.csr_array:
    """Return the share of each flow that goes through each directed link, shape (L, F).

    It is one at the links of both endpoints; between switches shares of paths add up.

    Args:
        network: The network.
        flows: The flows.
        routing: How paths are chosen.
        seed: Of the hash (ecmp) or of the order of pieces (adaptive).
    """
    each, ones = np.arange(len(flows)), np.ones(len(flows))
    paths, shares_P = _routed(network, flows, routing, seed)
    used_PH = (paths.links_PH != NO_LINK) & (shares_P > 0)[:, None]
    owners_PH, shares_PH = (
        np.broadcast_to(values[:, None], used_PH.shape) for values in (paths.owners, shares_P)
    )
    rows = paths.links_PH[used_PH], flows.sources, network.endpoints + flows.destinations
    columns, data = (owners_PH[used_PH], each, each), (shares_PH[used_PH], ones, ones)
    entries = np.concatenate(data), (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_array(entries, shape=(network.links, len(flows)))


def link_loads(network: Network, demand_EE: Floats, routing: Routing, seed: int = 0) -> Floats:
    """Return the bytes that go through each directed link, shape (L,).

    Flows between the same two switches have the same paths to choose from. Where they are spread
    over all of these, what they carry is added up first; adaptive routing cuts the sum into pieces.

    Args:
        network: The network.
        demand_EE: Bytes from each endpoint (row) to each other one (column).
        routing: How paths are chosen.
        seed: Of the hash (ecmp) or of the order of pieces (adaptive).
    """
    ends = np.concatenate([demand_EE.sum(axis=1), demand_EE.sum(axis=0)])
    load_L = np.pad(ends, (0, network.links - len(ends)))
    if routing in ("static", "ecmp"):
        for flows, volumes_F in _chunks(demand_EE):
            paths = network.single_paths(flows, routing, seed)
            load_L += _added_up(paths, volumes_F, network.links)
        return load_L
    demand_MM = _between_leaves(network, demand_EE)
    first, second = np.nonzero(demand_MM)
    paths = network.all_paths(network.leaves[first], network.leaves[second])
    volumes_F = demand_MM[first, second]
    shares_P = _spread(network, paths, volumes_F, routing, seed)
    return load_L + _added_up(paths, shares_P * volumes_F[paths.owners], network.links)


def _routed(network: Network, flows: Flows, routing: Routing, seed: int) -> tuple[Paths, Floats]:
    """Return paths and which share of its flow each carries."""
    if routing in ("static", "ecmp"):
        return network.single_paths(flows, routing, seed), np.ones(len(flows))
    switches = network.topology.endpoint_switches
    paths = network.all_paths(switches[flows.sources], switches[flows.destinations])
    return paths, _spread(network, paths, np.ones(len(flows)), routing, seed)


def _spread(
    network: Network, paths: Paths, volumes_F: Floats, routing: Routing, seed: int
) -> Floats:
    """Return the share of its flow that each of all shortest paths carries, shape (P,)."""
    counts_F = np.bincount(paths.owners, minlength=len(volumes_F))
    if routing == "sprayed":
        return 1 / counts_F[paths.owners]
    firsts_F = np.cumsum(counts_F) - counts_F
    # Flows without a choice are there first.
    taken_P = (counts_F[paths.owners] == 1).astype(float)
    # One more link, whose load stays zero, stands for NO_LINK.
    load_L = np.append(_added_up(paths, taken_P * volumes_F[paths.owners], network.links), 0.0)
    pieces_F = np.where(counts_F > 1, np.maximum(counts_F, PIECES), 0)
    order = np.repeat(np.arange(len(volumes_F)), pieces_F)
    for flow in np.random.default_rng(seed).permutation(order):
        options = slice(firsts_F[flow], firsts_F[flow] + counts_F[flow])
        chosen = firsts_F[flow] + _least_busy(load_L[paths.links_PH[options]])
        taken_P[chosen] += 1 / pieces_F[flow]
        load_L[paths.links_PH[chosen]] += volumes_F[flow] / pieces_F[flow]
        load_L[NO_LINK] = 0.0
    return taken_P


def _least_busy(load_PH: Floats) -> int:
    """Return the path whose busiest link is least busy; among equals the one with the least sum."""
    busiest_P = load_PH.max(axis=1)
    equal = np.flatnonzero(busiest_P <= busiest_P.min() * (1 + 1e-9))
    return int(equal[load_PH[equal].sum(axis=1).argmin()])


def _chunks(demand_EE: Floats) -> Iterator[tuple[Flows, Floats]]:
    rows = max(1, CHUNK // len(demand_EE))
    for start in range(0, len(demand_EE), rows):
        sources, destinations = np.nonzero(demand_EE[start : start + rows])
        pairs = np.stack([start + sources, destinations], axis=1)
        yield flows_between(pairs), demand_EE[pairs[:, 0], pairs[:, 1]]


def _between_leaves(network: Network, demand_EE: Floats) -> Floats:
    """Return the demand from leaf to leaf, without what stays within one, shape (M, M)."""
    entries = np.ones(network.endpoints), (network.endpoint_leaves, np.arange(network.endpoints))
    members_ME = sparse.csr_array(entries)
    demand_MM = members_ME @ demand_EE @ members_ME.T
    np.fill_diagonal(demand_MM, 0)
    return demand_MM


def _added_up(paths: Paths, volumes_P: Floats, links: int) -> Floats:
    used_PH = paths.links_PH != NO_LINK
    weights = np.broadcast_to(volumes_P[:, None], used_PH.shape)[used_PH]
    return np.bincount(paths.links_PH[used_PH], weights, minlength=links).astype(np.float64)
