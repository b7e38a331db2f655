"""A network's links in both directions and the shortest paths between its endpoints.

In a dragonfly the shortest path is the minimal route of Kim et al. (ISCA 2008), over one link
between groups.

Shape suffixes: N switches, K links of a switch, M switches with endpoints, F flows, H links of a
path, P paths.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import shortest_path

from harness.errors import UserError
from harness.systems.topologies import Integers, Topology

NO_LINK = -1
# Any path over two links between groups is longer than one over a single one and two inside groups.
LOCAL_LENGTH, GLOBAL_LENGTH = 1, 3
# Increment, shifts and multipliers of SplitMix64 (Steele et al., OOPSLA 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Flows:
    """Transfers between endpoints.

    Attributes:
        sources: Sending endpoint of each, shape (F,).
        destinations: Receiving endpoint of each, shape (F,).
        keys: What a hash tells flows with the same ends apart by, their queue pair, shape (F,).
    """

    sources: Integers
    destinations: Integers
    keys: Integers

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.sources)


@dataclass(frozen=True)
class Paths:
    """Paths of flows.

    Attributes:
        owners: The flow of each path, in increasing order, shape (P,).
        links_PH: Directed links between switches in the order in which they are passed, with
            ``NO_LINK`` where a path is shorter than the longest one.
    """

    owners: Integers
    links_PH: Integers


class Network:
    """A topology with its directed links and, for every switch, those that lead to each leaf.

    Directed links are numbered: from every endpoint, to every endpoint, then of every link of the
    topology the one from its first to its second end and the one back. A leaf is a switch with
    endpoints.

    Attributes:
        topology: The switches and endpoints.
        endpoints: Their number.
        links: Number of directed links.
        leaves: Switches with endpoints, shape (M,).
        endpoint_leaves: Place in ``leaves`` of every endpoint's switch, shape (endpoints,).
    """

    def __init__(self, topology: Topology) -> None:
        """Find the shortest paths; memory grows as N x M x K.

        Raises:
            UserError: If no path joins some endpoints.
        """
        self.topology = topology
        self.endpoints = len(topology.endpoint_switches)
        self.links = 2 * (self.endpoints + len(topology.links))
        self.leaves, self.endpoint_leaves = np.unique(
            topology.endpoint_switches, return_inverse=True
        )
        ends = np.concatenate([topology.links, topology.links[:, ::-1]])
        is_global = np.arange(len(topology.links)) >= topology.local_links
        lengths = np.tile(np.where(is_global, GLOBAL_LENGTH, LOCAL_LENGTH), 2)
        forward = 2 * self.endpoints + 2 * np.arange(len(topology.links))
        self._link_NK = self._by_switch(ends, np.concatenate([forward, forward + 1]), NO_LINK)
        self._next_NK = self._by_switch(ends, ends[:, 1], 0)
        self._choose(ends, lengths)

    def _by_switch(self, ends: Integers, values: NDArray, filler: float) -> NDArray:
        """Return the values of the directed links that leave each switch, shape (N, K)."""
        order = np.lexsort((ends[:, 1], ends[:, 0]))
        degrees = np.bincount(ends[:, 0], minlength=self.topology.switches)
        places = np.arange(len(ends)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
        shape = (self.topology.switches, degrees.max(initial=0))
        table = np.full(shape, filler, dtype=values.dtype)
        table[ends[order, 0], places] = values[order]
        return table

    def _choose(self, ends: Integers, lengths: Integers) -> None:
        """Note how many links of a switch lead nearer to each leaf, and these before others."""
        # Of parallel links one says how far apart their ends are.
        distinct, one_of = np.unique(ends, axis=0, return_index=True)
        graph = sparse.csr_array((lengths[one_of], distinct.T), (self.topology.switches,) * 2)
        far_MN = shortest_path(graph, indices=self.leaves)
        if not np.isfinite(far_MN).all():
            raise UserError("network: found endpoints without a path between them, expected one "
                            "plane of a multi-plane network")  # fmt: skip
        length_NK = self._by_switch(ends, lengths.astype(float), np.inf)
        nearer_NMK = np.stack([
            far_MN[:, self._next_NK[switch]] + length_NK[switch] == far_MN[:, [switch]]
            for switch in range(self.topology.switches)
        ])  # fmt: skip
        self._order_NMK = np.argsort(~nearer_NMK, axis=2, kind="stable").astype(np.int16)
        self._count_NM = nearer_NMK.sum(axis=2)

    def single_paths(self, flows: Flows, routing: Literal["static", "ecmp"], seed: int) -> Paths:
        """Return the one path that each flow takes.

        With ``static`` the destination decides, one digit of its number at each switch (D-mod-k,
        Zahavi, J. Parallel and Distributed Computing 2012), which keeps shifts of all endpoints
        free of conflicts in a fat tree. With ``ecmp`` a hash of the flow decides, salted at each
        switch.

        Args:
            flows: The flows.
            routing: How a path is chosen.
            seed: Of the hash.
        """
        leaf_F = self.endpoint_leaves[flows.destinations]
        at_F = self.topology.endpoint_switches[flows.sources]
        digits_F, columns = flows.destinations.astype(np.uint64), []
        hashes_F = _hash(flows.sources, flows.destinations, flows.keys, np.full(len(flows), seed))
        while (moving_F := at_F != self.leaves[leaf_F]).any():
            fan_F = np.where(moving_F, self._count_NM[at_F, leaf_F], 1).astype(np.uint64)
            choice_F = (digits_F if routing == "static" else _hash(hashes_F, at_F)) % fan_F
            digits_F = digits_F // fan_F
            link_F, at_F = self._step(at_F, leaf_F, choice_F.astype(np.int64), moving_F)
            columns.append(link_F)
        links_FH = np.stack(columns, axis=1) if columns else np.empty((len(flows), 0), np.int64)
        return Paths(np.arange(len(flows)), links_FH)

    def all_paths(self, sources: Integers, destinations: Integers) -> Paths:
        """Return every shortest path between switches.

        Args:
            sources: First switch of each flow, shape (F,).
            destinations: Last switch of each flow, a leaf, shape (F,).
        """
        leaf_P, at_P = np.searchsorted(self.leaves, destinations), sources
        owners, links_PH = np.arange(len(sources)), np.empty((len(sources), 0), np.int64)
        while (moving_P := at_P != self.leaves[leaf_P]).any():
            fan_P = np.where(moving_P, self._count_NM[at_P, leaf_P], 1)
            copies = np.repeat(np.arange(len(at_P)), fan_P)
            choice_P = np.arange(len(copies)) - np.repeat(np.cumsum(fan_P) - fan_P, fan_P)
            owners, leaf_P = owners[copies], leaf_P[copies]
            link_P, at_P = self._step(at_P[copies], leaf_P, choice_P, moving_P[copies])
            links_PH = np.concatenate([links_PH[copies], link_P[:, None]], axis=1)
        return Paths(owners, links_PH)

    def _step(
        self, at: Integers, leaf: Integers, choice: Integers, moving: NDArray[np.bool_]
    ) -> tuple[Integers, Integers]:
        """Return the link that each one takes from its switch, and the switch behind it."""
        place = self._order_NMK[at, leaf, choice]
        link = np.where(moving, self._link_NK[at, place], NO_LINK)
        return link, np.where(moving, self._next_NK[at, place], at)


def _hash(*parts: NDArray) -> NDArray[np.uint64]:
    """Return well-mixed numbers that depend on every part."""
    state = np.zeros(len(parts[0]), dtype=np.uint64)
    for part in parts:
        state = (state ^ part.astype(np.uint64)) + _GAMMA
        for shift, factor in _MIX:
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state ^= state >> np.uint64(31)
    return state
