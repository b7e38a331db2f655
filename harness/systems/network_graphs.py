"""A network switch by switch and link by link, as records that it can be drawn from."""

from collections.abc import Iterator

import numpy as np

from harness.records.record import Record, record
from harness.systems.topologies import Integers, Topology


def graph_records(name: str, graph: Topology, nodes: Integers | None) -> Iterator[Record]:
    """Yield what a network consists of.

    Args:
        name: Of the network, the label ``topology``.
        graph: The network.
        nodes: Node of every endpoint, shape (endpoints,); None if endpoints are of no node.

    Returns:
        ``network_graph/endpoints`` of every switch, with its layer and group;
        ``network_graph/links``, parallel ones of any two linked switches; and
        ``network_graph/ports`` of every node on every switch that it is attached to.
    """
    endpoints = np.bincount(graph.endpoint_switches, minlength=graph.switches)
    places = zip(endpoints, graph.layers, graph.groups, strict=True)
    for switch, (count, layer, group) in enumerate(places):
        yield record("network_graph/endpoints", count, "endpoints", topology=name,
                     switch=switch, layer=int(layer), group=int(group))  # fmt: skip
    for (switch, other), count in _distinct(np.sort(graph.links, axis=1)):
        yield record("network_graph/links", count, "links", topology=name,
                     switch=switch, other=other)  # fmt: skip
    if nodes is not None:
        for (node, switch), count in _distinct(np.stack([nodes, graph.endpoint_switches], axis=1)):
            yield record("network_graph/ports", count, "endpoints", topology=name,
                         node=node, switch=switch)  # fmt: skip


def _distinct(pairs: Integers) -> Iterator[tuple[list[int], int]]:
    """Yield the different rows of ``pairs`` in order, and how often each is there."""
    rows, counts = np.unique(pairs, axis=0, return_counts=True)
    yield from zip(rows.tolist(), counts.tolist(), strict=True)
