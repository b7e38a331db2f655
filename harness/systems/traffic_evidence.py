"""Bandwidths of networks under the traffic of training, as records.

arXiv 2505.09343, sections 4.3, 5.1 and 5.2. Flow-level simulation: it knows no packets and queues.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from harness.config.base import Spec, validate
from harness.errors import UserError
from harness.records.record import Record, record
from harness.systems.dispatch_traffic import Dispatch, Scheme, messages
from harness.systems.network_evidence import Family
from harness.systems.network_paths import Network
from harness.systems.network_routing import Routing
from harness.systems.traffic_scenarios import (
    Failure,
    Nodes,
    Order,
    Planes,
    Rings,
    Spread,
    all_to_all_bandwidth,
    bandwidth_after,
    group_bandwidth,
    incast_rate,
    plane_bandwidth,
    rail_bandwidth,
    ring_times,
)

WHERE = "network_traffic"
# Routings that have nothing to draw.
FIXED: tuple[Routing, ...] = ("static", "sprayed")
Seeds = Annotated[list[NonNegativeInt], Field(min_length=1)]
Numbers = Annotated[list[PositiveInt], Field(min_length=1)]


class Bandwidths(Spec):
    """Of one GPU in one direction, in GB/s."""

    network: PositiveFloat
    nvlink: PositiveFloat


class AllToAll(Spec):
    """All endpoints of some networks, and some of them that all send to one."""

    networks: dict[str, Family]
    incast: Numbers = Field(description="senders")


class RailArguments(Spec):
    """All-to-all over a plane per GPU of a node against a single plane with all rails."""

    nodes: Numbers
    network: Nodes

    @model_validator(mode="after")
    def _full_leaves(self) -> "RailArguments":
        full = self.network.endpoints_per_leaf
        for nodes in self.nodes:
            if nodes > full and nodes % full:
                raise ValueError(
                    f"nodes: found {nodes}, expected at most {full} or a multiple of it, such as "
                    f"{nodes - nodes % full}: leaves are full"
                )
        return self


class RingArguments(Spec):
    """Ring collectives of data-parallel groups."""

    network: Rings
    groups: Numbers = Field(description="that a node is in")
    orders: list[Order]
    queue_pairs: Numbers
    read_off: dict[Routing, dict[PositiveInt, PositiveFloat]] = Field(
        default_factory=dict, description="GB/s read off a published figure, by groups"
    )

    @model_validator(mode="after")
    def _whole_groups(self) -> "RingArguments":
        cards = self.network.gpus_per_node
        for groups in self.groups:
            if cards % groups:
                raise ValueError(f"groups: found {groups}, expected a divisor of gpus_per_node, "
                                 f"{cards}, such as {math.gcd(groups, cards)}")  # fmt: skip
        return self


class FailureArguments(Spec):
    """An all-to-all after something in one plane failed."""

    network: Planes
    planes: Numbers


class DispatchArguments(Spec):
    """Tokens sent to experts on other nodes."""

    tokens: Dispatch
    nodes: Numbers
    printed: dict[Literal["dispatch", "combine"], dict[PositiveInt, PositiveFloat]] = Field(
        description="logical GB/s by nodes"
    )

    @model_validator(mode="after")
    def _spread_evenly(self) -> "DispatchArguments":
        for nodes in self.nodes:
            self.tokens.mixture(nodes, limited=True)
        return self


def network_traffic(
    bandwidth: Mapping[str, Any],
    routings: Sequence[str],
    seeds: Sequence[int],
    all_to_all: Mapping[str, Any],
    rails: Mapping[str, Any],
    rings: Mapping[str, Any],
    failures: Mapping[str, Any],
    dispatch: Mapping[str, Any],
) -> list[Record]:
    """Return the bandwidths that traffic patterns get on networks, by how paths are chosen.

    Args:
        bandwidth: A ``Bandwidths``; all links of a network are as fast as network cards.
        routings: Some of static, ecmp, sprayed and adaptive.
        seeds: Of what routings draw.
        all_to_all: An ``AllToAll``.
        rails: A ``RailArguments``.
        rings: A ``RingArguments``.
        failures: A ``FailureArguments``.
        dispatch: A ``DispatchArguments``.

    Returns:
        ``traffic/all_to_all_share`` of the endpoints' bandwidth and ``traffic/incast_rate``;
        ``traffic/algorithm_bandwidth`` over planes and rails, ``traffic/planes_over_rails`` minus
        one, and of these ``traffic/largest_difference``; ``traffic/ring_bandwidth``;
        ``traffic/share_after_failure`` and ``traffic/joined_pairs``; and of dispatched tokens
        ``dispatch/nodes``, ``dispatch/messages``, the bytes of tokens per second
        ``dispatch/token_bandwidth``, and ``dispatch/logical_bandwidth``, which counts a token once
        for every node, the sender's own too, as DeepEP reports it.

    Raises:
        UserError: If an argument is not as described.
    """
    speed: Bandwidths = validate(Bandwidths, bandwidth, f"{WHERE}: bandwidth")
    ways: list[Routing] = validate(list[Routing], routings, f"{WHERE}: routings")
    drawn: Seeds = validate(Seeds, seeds, f"{WHERE}: seeds")
    exchange: AllToAll = validate(AllToAll, all_to_all, f"{WHERE}: all_to_all")
    compared: RailArguments = validate(RailArguments, rails, f"{WHERE}: rails")
    ringed: RingArguments = validate(RingArguments, rings, f"{WHERE}: rings")
    failing: FailureArguments = validate(FailureArguments, failures, f"{WHERE}: failures")
    sent: DispatchArguments = validate(DispatchArguments, dispatch, f"{WHERE}: dispatch")
    return [
        *_all_to_all(exchange, ways, drawn, speed),
        *_rails(compared, ways, drawn, speed),
        *_rings(ringed, ways, drawn, speed),
        *_failures(failing),
        *_dispatch(sent, speed),
    ]


def _all_to_all(
    exchange: AllToAll, ways: list[Routing], seeds: list[int], speed: Bandwidths
) -> Iterator[Record]:
    for name, family in exchange.networks.items():
        try:
            network = Network(family.build())
        except UserError as error:
            raise UserError(f"{WHERE}: all_to_all.networks.{name}: {error}") from None
        for senders in exchange.incast:
            if senders >= network.endpoints:
                raise UserError(f"{WHERE}: all_to_all.incast: found {senders}, expected fewer than "
                                f"the {network.endpoints} endpoints of {name}")  # fmt: skip
        for routing in ways:
            of = {"topology": name, "endpoints": network.endpoints, "routing": routing}
            for seed in _needed(seeds, routing):
                share = all_to_all_bandwidth(network, routing, seed)
                yield record("traffic/all_to_all_share", share, "1", seed=seed, **of)
            for senders in exchange.incast:
                rate = speed.network * incast_rate(network, senders, routing, seeds[0])
                yield record("traffic/incast_rate", rate, "GB/s", **(of | {"senders": senders}))


def _rails(
    compared: RailArguments, ways: list[Routing], seeds: list[int], speed: Bandwidths
) -> Iterator[Record]:
    """Yield bandwidths over planes, and over rails whose messages change rails in two ways."""
    network, nvlink = compared.network, speed.nvlink / speed.network
    for routing in ways:
        differences = []
        for nodes, seed in product(compared.nodes, _needed(seeds, routing)):
            over_planes = plane_bandwidth(nodes, network, nvlink, routing, seed)
            of = {"gpus": nodes * network.gpus_per_node, "routing": routing}
            yield _bandwidth(over_planes * speed.network, of | {"network": "planes"}, seed)
            for change in ("nvlink", "network"):
                forwarded = change == "nvlink"
                over_rails = rail_bandwidth(nodes, network, nvlink, routing, forwarded, seed)
                labels = of | {"network": "rails", "rails_change_by": change}
                yield _bandwidth(over_rails * speed.network, labels, seed)
                differences.append(over_planes / over_rails - 1)
                yield record("traffic/planes_over_rails", differences[-1], "1", seed=seed, **labels)
        largest = max(differences, key=abs)
        yield record("traffic/largest_difference", largest, "1", routing=routing)


def _bandwidth(value: float, labels: dict[str, Any], seed: int | None) -> Record:
    return record("traffic/algorithm_bandwidth", value, "GB/s", seed=seed, **labels)


def _rings(
    ringed: RingArguments, ways: list[Routing], seeds: list[int], speed: Bandwidths
) -> Iterator[Record]:
    for order, queue_pairs, routing in product(ringed.orders, ringed.queue_pairs, ways):
        of = {"order": order, "queue_pairs": queue_pairs, "routing": routing, "method": "simulated"}
        for seed in seeds:
            times = ring_times(ringed.network, order, routing, queue_pairs, seed)
            for groups in ringed.groups:
                value = speed.network * group_bandwidth(times, groups)
                labels = of | {"groups": groups}
                yield record("traffic/ring_bandwidth", value, "GB/s", seed=seed, **labels)
    for routing, values in ringed.read_off.items():
        for groups, value in values.items():
            labels = {"routing": routing, "groups": groups, "method": "read_off"}
            yield record("traffic/ring_bandwidth", value, "GB/s", **labels)


def _failures(failing: FailureArguments) -> Iterator[Record]:
    what, how = get_args(Failure), get_args(Spread)
    for planes, failure, spread in product(failing.planes, what, how):
        share, joined = bandwidth_after(failing.network, planes, failure, spread)
        labels = {"planes": planes, "failure": failure, "spread": spread}
        yield record("traffic/share_after_failure", share, "1", **labels)
        yield record("traffic/joined_pairs", joined, "1", **labels)


def _dispatch(sent: DispatchArguments, speed: Bandwidths) -> Iterator[Record]:
    for nodes, limited, scheme in product(sent.nodes, (True, False), get_args(Scheme)):
        found = messages(sent.tokens, nodes, limited, scheme)
        limit = sent.tokens.node_limit if limited else "none"
        of = {"gpus": nodes * sent.tokens.gpus_per_node, "limit": limit, "scheme": scheme}
        yield record("dispatch/nodes", found.nodes, "nodes", **of)
        for over in ("network", "nvlink"):
            value = getattr(found, over)
            yield record("dispatch/messages", value, "messages", **(of | {"over": over}))
        tokens = found.token_bandwidth(speed.network, speed.nvlink)
        yield record("dispatch/token_bandwidth", tokens, "GB/s", **of)
        logical = {**of, "method": "simulated"}
        yield record("dispatch/logical_bandwidth", found.nodes * tokens, "GB/s", **logical)
    for operation, values in sent.printed.items():
        for nodes, value in values.items():
            gpus = nodes * sent.tokens.gpus_per_node
            labels = {"gpus": gpus, "operation": operation, "method": "printed"}
            yield record("dispatch/logical_bandwidth", value, "GB/s", **labels)


def _needed(seeds: list[int], routing: Routing) -> list[int]:
    return seeds[:1] if routing in FIXED else seeds
