"""Which links the flows between endpoints take, all of them on shortest paths.

In a dragonfly the shortest path is the minimal route of Kim et al. (ISCA 2008): over one link between
groups. Four ways to choose among the shortest paths of a flow:

- static: the destination decides, one digit of its number at each switch (D-mod-k, Zahavi, J.
  Parallel and Distributed Computing 2012), which keeps shifts of all endpoints free of conflicts.
- ecmp: a hash of the flow, salted at each switch, decides; the flow stays on its path.
- sprayed: all paths carry the same share, as if packet by packet and blind to load.
- adaptive: the flow is cut in equal pieces, which go one after the other, in random order, to the
  path whose busiest link is least busy.

Shape suffixes: N switches, K links of a switch, M switches with endpoints, F flows, H hops, P paths.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import shortest_path

from harness.systems.topologies import Integers, Topology

Routing = Literal["static", "ecmp", "sprayed", "adaptive"]
NO_LINK = -1
# A second link between groups makes a path longer than any with one and two inside groups.
LOCAL_LENGTH, GLOBAL_LENGTH = 1, 3
# Increments and multipliers of the hash (SplitMix64, Steele et al., OOPSLA 2014).
_GAMMA, _MIX = np.uint64(0x9E3779B97F4A7C15), (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True)
class Flows:
    """Transfers between endpoints.

    Attributes:
        sources: Sending endpoint of each, shape (F,).
        destinations: Receiving endpoint of each, shape (F,).
        keys: What a hash tells flows with the same ends apart by, shape (F,): their queue pair.
    """

    sources: Integers
    destinations: Integers
    keys: Integers

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.sources)


@dataclass(frozen=True)
class Paths:
    """Shortest paths.

    Attributes:
        owners: The flow of each path, shape (P,), in increasing order.
        links_PH: Directed links in the order in which they are passed, then ``NO_LINK``.
    """

    owners: Integers
    links_PH: Integers


class Network:
    """A topology with its links in both directions and its shortest paths.

    Directed links are numbered: from every endpoint, to every endpoint, then of every link of the
    topology the one from its first to its second end and the one back.

    Attributes:
        topology: The switches and endpoints.
        links: Number of directed links.
    """

    def __init__(self, topology: Topology) -> None:
        """Find the shortest paths; memory grows as N x K x M."""
        self.topology = topology
        self.endpoints = len(topology.endpoint_switches)
        self.links = 2 * (self.endpoints + len(topology.links))
        self.leaves, self.endpoint_leaves = np.unique(
            topology.endpoint_switches, return_inverse=True
        )
        between_groups = np.arange(len(topology.links)) >= topology.local_links
        lengths = np.where(between_groups, GLOBAL_LENGTH, LOCAL_LENGTH)
        ends = np.concatenate([topology.links, topology.links[:, ::-1]])
        self._lengths = np.tile(lengths, 2)
        self._link_NK, self._next_NK, self._length_NK = self._outgoing(ends, self._lengths)
        self._ends = ends

    def single_paths(self, flows: Flows, routing: Literal["static", "ecmp"], seed: int) -> Integers:
        """Return the links between switches that each flow takes.

        Args:
            flows: The flows; their ends must be joined.
            routing: How a path is chosen.
            seed: Of the hash.

        Returns:
            Shape (F, H), ``NO_LINK`` where a path is shorter than the longest one.
        """
        order_NMK, count_NM = self._choices
        leaf, at = self.endpoint_leaves[flows.destinations], self._switches(flows.sources)
        digits, columns = flows.destinations.copy(), []
        hashes = _hash(flows.sources, flows.destinations, flows.keys, np.full(len(flows), seed))
        while (moving := at != self.leaves[leaf]).any():
            fan = np.where(moving, count_NM[at, leaf], 1)
            assert (fan > 0).all(), "endpoints without a path"
            choice = digits if routing == "static" else _hash(hashes, at)
            place = order_NMK[at, leaf, choice % fan.astype(choice.dtype)]
            digits //= fan
            columns.append(np.where(moving, self._link_NK[at, place], NO_LINK))
            at = np.where(moving, self._next_NK[at, place], at)
        return np.stack(columns, axis=1) if columns else np.empty((len(flows), 0), dtype=np.int64)

    def all_paths(self, sources: Integers, destinations: Integers) -> Paths:
        """Return every shortest path between switches.

        Args:
            sources: First switch of each flow, shape (F,).
            destinations: Last switch of each flow, which has endpoints, shape (F,).
        """
        order_NMK, count_NM = self._choices
        leaf, owners, at = np.searchsorted(self.leaves, destinations), np.arange(len(sources)), sources
        links_PH = np.empty((len(sources), 0), dtype=np.int64)
        while (moving := at != self.leaves[leaf[owners]]).any():
            fan = np.where(moving, count_NM[at, leaf[owners]], 1)
            assert (fan > 0).all(), "endpoints without a path"
            copies = np.repeat(np.arange(len(at)), fan)
            choice = np.arange(len(copies)) - np.repeat(np.cumsum(fan) - fan, fan)
            owners, at, moving = owners[copies], at[copies], moving[copies]
            place = order_NMK[at, leaf[owners], choice]
            step = np.where(moving, self._link_NK[at, place], NO_LINK)
            links_PH = np.concatenate([links_PH[copies], step[:, None]], axis=1)
            at = np.where(moving, self._next_NK[at, place], at)
        return Paths(owners, links_PH)

    def usage(
        self, flows: Flows, routing: Routing, seed: int = 0, pieces: int = 16
    ) -> sparse.csr_array:
        """Return the share of each flow that goes through each directed link.

        Args:
            flows: The flows; their ends must be joined.
            routing: How paths are chosen.
            seed: Of the hash (ecmp) or of the order of pieces (adaptive).
            pieces: Of each flow (adaptive).

        Returns:
            Shape (links, F): one at the links of both endpoints, and between switches the shares of
            the paths that a link is part of.
        """
        if routing in ("static", "ecmp"):
            between = self.single_paths(flows, routing, seed)
            paths, shares = Paths(np.arange(len(flows)), between), np.ones(len(flows))
        else:
            ends = self._switches(flows.sources), self._switches(flows.destinations)
            paths = self.all_paths(*ends)
            volumes = np.ones(len(flows))
            shares = self.shares(paths, volumes, routing, seed, pieces)
        owners = np.repeat(paths.owners, paths.links_PH.shape[1])
        weights = np.repeat(shares, paths.links_PH.shape[1])
        used = (paths.links_PH.ravel() != NO_LINK) & (weights > 0)
        each, ones = np.arange(len(flows)), np.ones(len(flows))
        rows = [paths.links_PH.ravel()[used], flows.sources, self.endpoints + flows.destinations]
        columns, data = [owners[used], each, each], [weights[used], ones, ones]
        entries = np.concatenate(data), (np.concatenate(rows), np.concatenate(columns))
        return sparse.csr_array(entries, shape=(self.links, len(flows)))

    def shares(
        self, paths: Paths, volumes: NDArray[np.float64], routing: Routing, seed: int, pieces: int
    ) -> NDArray[np.float64]:
        """Return the share of its flow that goes over each path, shape (P,).

        Args:
            paths: All shortest paths of the flows.
            volumes: What each flow carries, shape (F,).
            routing: sprayed or adaptive.
            seed: Of the order of pieces.
            pieces: Of each flow (adaptive).
        """
        counts = np.bincount(paths.owners, minlength=len(volumes))
        if routing == "sprayed":
            return 1 / counts[paths.owners]
        firsts = np.cumsum(counts) - counts
        # What cannot choose is there first. One more link, never loaded, stands for NO_LINK.
        alone = counts[paths.owners] == 1
        taken, load = alone.astype(float), np.zeros(self.links + 1)
        placed = np.repeat(volumes[paths.owners[alone]], paths.links_PH.shape[1])
        np.add.at(load, paths.links_PH[alone].ravel(), placed)
        load[NO_LINK] = 0
        free = np.flatnonzero(counts > 1)
        for flow in np.random.default_rng(seed).permutation(np.repeat(free, pieces)):
            options = slice(firsts[flow], firsts[flow] + counts[flow])
            chosen = firsts[flow] + _least_busy(load[paths.links_PH[options]])
            taken[chosen] += 1 / pieces
            load[paths.links_PH[chosen]] += volumes[flow] / pieces
            load[NO_LINK] = 0
        return taken

    def _switches(self, endpoints: Integers) -> Integers:
        return self.topology.endpoint_switches[endpoints]


def _least_busy(load_PH: NDArray[np.float64]) -> int:
    """Return the path whose busiest link is least busy; among equals the one with the least sum."""
    busiest = load_PH.max(axis=1)
    equal = np.flatnonzero(busiest <= busiest.min() * (1 + 1e-9))
    return int(equal[load_PH[equal].sum(axis=1).argmin()])


def _hash(*parts: NDArray) -> NDArray[np.uint64]:
    """Return well-mixed numbers that depend on every part."""
    state = np.zeros(len(parts[0]), dtype=np.uint64)
    for part in parts:
        state = (state ^ part.astype(np.uint64)) + _GAMMA
        for shift, factor in zip((30, 27), _MIX, strict=True):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state ^= state >> np.uint64(31)
    return state
