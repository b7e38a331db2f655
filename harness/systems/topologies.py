"""Switched networks as graphs, and their sizes by closed form.

Each family of networks says what it consists of twice: ``counts`` by formula and ``build`` as a
graph, whose switches, links and endpoints can be counted. Links are between switches; the cables
of endpoints are not among them, as in arXiv 2505.09343, table 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator
from scipy import sparse

from harness.config.base import Spec

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """How much of everything a network has.

    Attributes:
        endpoints: Ports of network cards.
        switches: Of all layers.
        links: Between switches, ``local_links`` among them.
        local_links: Inside a group of a dragonfly, short and so cheaper than others.
    """

    endpoints: int
    switches: int
    links: int
    local_links: int = 0


@dataclass(frozen=True)
class Topology:
    """A network of switches that endpoints are attached to.

    Attributes:
        switches: Their number; they are numbered from 0.
        endpoint_switches: Switch of every endpoint, shape (endpoints,).
        links: Ends of every link between switches, shape (links, 2); parallel ones are repeated.
        local_links: How many of ``links``, the first ones, are inside a group of a dragonfly.
        representatives: Switches with endpoints, of which at least one is like any given other one
            by a symmetry of the network.
        layers: Layer of every switch, 0 that of endpoints, shape (switches,).
        groups: What every switch is part of, numbered from 0, shape (switches,): a plane, a pod, a
            group of a dragonfly; the families say what else.
    """

    switches: int
    endpoint_switches: Integers
    links: Integers
    local_links: int
    representatives: Integers
    layers: Integers
    groups: Integers

    @property
    def counts(self) -> Counts:
        """What is in the graph."""
        return Counts(len(self.endpoint_switches), self.switches, len(self.links), self.local_links)

    @property
    def adjacency(self) -> sparse.csr_array:
        """Number of links between each two switches, shape (switches, switches)."""
        ends = np.concatenate([self.links, self.links[:, ::-1]])
        return sparse.csr_array(
            (np.ones(len(ends), dtype=np.int32), (ends[:, 0], ends[:, 1])),
            shape=(self.switches, self.switches),
        )

    @property
    def ports(self) -> Integers:
        """Ports in use of every switch, shape (switches,)."""
        ends = np.concatenate([self.links.ravel(), self.endpoint_switches])
        return np.bincount(ends, minlength=self.switches)


def leaf_spine(leaves: int, spines: int, endpoints_per_leaf: int) -> Topology:
    """Return leaves, each linked to every spine; leaves are numbered before spines."""
    return Topology(
        switches=leaves + spines,
        endpoint_switches=np.repeat(np.arange(leaves), endpoints_per_leaf),
        links=pairs(np.arange(leaves), leaves + np.arange(spines)),
        local_links=0,
        representatives=np.array([0]),
        layers=np.repeat([0, 1], [leaves, spines]),
        groups=np.zeros(leaves + spines, dtype=np.int64),
    )


def pairs(first: Integers, second: Integers) -> Integers:
    """Return every element of ``first`` with every one of ``second``, shape (pairs, 2)."""
    return np.stack([np.repeat(first, len(second)), np.tile(second, len(first))], axis=1)


def doublings(largest: int) -> list[int]:
    """Return the powers of two from 2 to below ``largest``, and ``largest``."""
    return [*(2**power for power in range(1, (largest - 1).bit_length())), largest]


class TwoLayerFatTree(Spec):
    """Leaves with half of their ports down, each linked to every spine; in one or more planes.

    The planes of a multi-plane network (arXiv 2505.09343, section 5.1) are separate fat trees; each
    network card of a node is in one of them.
    """

    kind: Literal["two_layer_fat_tree"] = "two_layer_fat_tree"
    radix: PositiveInt = Field(description="ports of a switch")
    planes: PositiveInt = 1
    node_ports: PositiveInt = Field(8, description="ports of all network cards of a node")

    @model_validator(mode="after")
    def _possible(self) -> "TwoLayerFatTree":
        _even(self.radix)
        if self.planes > self.node_ports:
            raise ValueError(f"planes: found {self.planes}, expected at most node_ports, "
                             f"{self.node_ports}: each plane takes a port of a node")  # fmt: skip
        return self

    @property
    def counts(self) -> Counts:
        """``k^2/2`` endpoints and links and ``3k/2`` switches per plane, for radix ``k``."""
        return self.with_leaves(self.radix)

    def with_leaves(self, leaves: int) -> Counts:
        """Return the counts with only some leaves per plane and as few spines as they fill."""
        up = self.radix // 2
        spines = -(-leaves * up // self.radix)
        return Counts(*(self.planes * n for n in (leaves * up, leaves + spines, leaves * up)))

    def sizes(self) -> Iterator[Counts]:
        """Yield the counts of smaller ones of the same switches, then of this one."""
        return map(self.with_leaves, doublings(self.radix))

    def build(self) -> Topology:
        """Return the graph; the planes follow one another."""
        plane = leaf_spine(self.radix, self.radix // 2, self.radix // 2)
        shifts = plane.switches * np.arange(self.planes)
        return Topology(
            switches=self.planes * plane.switches,
            endpoint_switches=(shifts[:, None] + plane.endpoint_switches).ravel(),
            links=(shifts[:, None, None] + plane.links).reshape(-1, 2),
            local_links=0,
            representatives=plane.representatives,
            layers=np.tile(plane.layers, self.planes),
            groups=np.repeat(np.arange(self.planes), plane.switches),
        )

    @property
    def endpoint_nodes(self) -> Integers:
        """Node of every endpoint of the graph, shape (endpoints,).

        A node has equally many ports in every plane, at the same places in all of them.
        """
        places = np.arange(self.radix * (self.radix // 2))
        return np.tile(places // (self.node_ports // self.planes), self.planes)


class ThreeLayerFatTree(Spec):
    """The k-ary fat tree with full bisection (Al-Fares et al., SIGCOMM 2008, section 3)."""

    kind: Literal["three_layer_fat_tree"] = "three_layer_fat_tree"
    radix: PositiveInt = Field(description="ports of a switch")

    @model_validator(mode="after")
    def _possible(self) -> "ThreeLayerFatTree":
        _even(self.radix)
        return self

    @property
    def counts(self) -> Counts:
        """``k^3/4`` endpoints, ``5k^2/4`` switches and ``k^3/2`` links, for radix ``k``."""
        return self.with_pods(self.radix)

    def with_pods(self, pods: int) -> Counts:
        """Return the counts with only some pods and as few core switches as they fill."""
        half = self.radix // 2
        cores = -(-pods * half * half // self.radix)
        return Counts(pods * half * half, pods * self.radix + cores, 2 * pods * half * half)

    def sizes(self) -> Iterator[Counts]:
        """Yield the counts of smaller ones of the same switches, then of this one."""
        return map(self.with_pods, doublings(self.radix))

    def build(self) -> Topology:
        """Return the graph: edge switches first, then those of aggregation, then the core.

        Core switches that are linked to the same switches are a group, numbered after the pods.
        """
        half, pods = self.radix // 2, np.arange(self.radix)
        edges = np.arange(self.radix * half)
        aggregations = edges + len(edges)
        within = [
            pairs(pod * half + np.arange(half), len(edges) + pod * half + np.arange(half))
            for pod in pods
        ]
        # The j-th aggregation switch of every pod goes to the j-th group of core switches.
        cores = 2 * len(edges) + np.arange(half * half).reshape(half, half)
        above = np.stack([np.repeat(aggregations, half), np.tile(cores.ravel(), len(pods))], axis=1)
        return Topology(
            switches=2 * len(edges) + half * half,
            endpoint_switches=np.repeat(edges, half),
            links=np.concatenate([*within, above]),
            local_links=0,
            representatives=np.array([0]),
            layers=np.repeat([0, 1, 2], [len(edges), len(edges), half * half]),
            groups=np.repeat(np.concatenate([pods, pods, len(pods) + np.arange(half)]), half),
        )


def _even(radix: int) -> None:
    if radix % 2:
        raise ValueError(f"radix: found {radix}, expected an even number such as {radix + 1}: "
                         "half of the ports go up")  # fmt: skip
