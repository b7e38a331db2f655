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
        forward = 2 * self.endpoints + 2 * np.arange(len(topology.links))
        is_global = np.arange(len(topology.links)) >= topology.local_links
        lengths = np.tile(np.where(is_global, GLOBAL_LENGTH, LOCAL_LENGTH), 2)
        self._outgoing(ends, np.concatenate([forward, forward + 1]))
        self._choose(ends, lengths)

    def _outgoing(self, ends: Integers, numbers: Integers) -> None:
        """Note the directed links that leave each switch, and the switches that they reach."""
        order = np.lexsort((ends[:, 1], ends[:, 0]))
        degrees = np.bincount(ends[:, 0], minlength=self.topology.switches)
        places = np.arange(len(ends)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
        shape = (self.topology.switches, degrees.max(initial=0))
        self._link_NK, self._next_NK = np.full(shape, NO_LINK), np.zeros(shape, dtype=np.int64)
        self._link_NK[ends[order, 0], places] = numbers[order]
        self._next_NK[ends[order, 0], places] = ends[order, 1]

    def _choose(self, ends: Integers, lengths: Integers) -> None:
        """Note how many links of a switch lead nearer to each leaf, and these before others."""
        length_NN = sparse.csr_array((lengths, ends.T), shape=(self.topology.switches,) * 2)
        # Parallel links have added up.
        length_NN.data[:] = np.where(length_NN.data % GLOBAL_LENGTH, LOCAL_LENGTH, GLOBAL_LENGTH)
        far_MN = shortest_path(length_NN, indices=self.leaves)
        if not np.isfinite(far_MN).all():
            raise UserError("network: found endpoints without a path between them, expected one "
                            "plane of a multi-plane network")  # fmt: skip
        shape = (self.topology.switches, len(self.leaves))
        self._order_NMK = np.empty((*shape, self._link_NK.shape[1]), dtype=np.int16)
        self._count_NM = np.empty(shape, dtype=np.int64)
        for switch, (links_K, next_K) in enumerate(zip(self._link_NK, self._next_NK, strict=True)):
            length_K = length_NN[[switch], next_K[links_K != NO_LINK]]
            far_K = np.full((len(self.leaves), len(links_K)), np.inf)
            far_K[:, links_K != NO_LINK] = far_MN[:, next_K[links_K != NO_LINK]] + length_K
            nearer_MK = far_K == far_MN[:, [switch]]
            self._order_NMK[switch] = np.argsort(~nearer_MK, axis=1, kind="stable")
            self._count_NM[switch] = nearer_MK.sum(axis=1)
