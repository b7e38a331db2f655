"""What the hardware that arXiv 2505.09343 recommends would be worth, by small closed forms.

Each part stands for one recommendation of sections 3 to 6; ``decode_limit`` says what a change of
latency or bandwidth does to decoding.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from harness.config.base import Spec, validate
from harness.config.decoder_schema import DecoderSpec, MixtureOfExperts
from harness.errors import UserError
from harness.records.record import Record, record
from harness.systems.decode_limit import (
    GIGABYTE,
    MICROSECONDS,
    Deployment,
    communication_time,
    limits,
)
from harness.systems.dequantization import scaling_share, scaling_time_share
from harness.systems.message_costs import burst_time, fence_time, message_rate
from harness.systems.multicast import SCHEMES, copies
from harness.systems.network_latency import CROSS_LEAF_LINKS, Latency
from harness.systems.shared_link import DISCIPLINES, finish_times, lane_bandwidth, rate_beside
from harness.systems.topologies import ThreeLayerFatTree, TwoLayerFatTree

WHERE = "hardware_recommendations"
Positive = Annotated[list[PositiveFloat], Field(min_length=1)]
Counts = Annotated[list[PositiveInt], Field(min_length=1)]
# Links between switches on the longest path.
PATHS = {"same leaf": 0, "two layers": CROSS_LEAF_LINKS, "three layers": 2 * CROSS_LEAF_LINKS}


class Link(Spec):
    """A PCIe 5.0 link that a network card shares with transfers of the cache."""

    lanes: PositiveInt
    streams: list[NonNegativeFloat] = Field(description="GB/s of the cache that are asked for")
    burst_megabytes: Positive = Field(description="of the cache, met by one dispatch")


class Host(Spec):
    """The lanes of a node."""

    lanes: PositiveInt
    printed: PositiveFloat = Field(description="GB/s")


class Messages(Spec):
    """Who posts the messages of a dispatch."""

    overheads: list[NonNegativeFloat] = Field(description="us in which one is posted")
    posters: dict[str, PositiveInt] = Field(description="threads that post at once, by name")


class Scales(Spec):
    """Matrix products with scales by groups."""

    inner: PositiveInt
    groups: Counts = Field(description="products that share scales")
    columns_per_scale: PositiveInt
    rate_ratios: Positive = Field(description="of tensor cores over what scales")


class Networks(Spec):
    """Latencies of networks, and the ports that their switches are made with."""

    latencies: dict[str, Latency] = Field(min_length=1, description="us, by kind of network")
    radices: Counts
    fences: list[NonNegativeInt] = Field(description="in a layer and micro-batch")


def hardware_recommendations(
    models: Mapping[str, Any],
    deployment: Mapping[str, Any],
    link: Mapping[str, Any],
    host: Mapping[str, Any],
    messages: Mapping[str, Any],
    networks: Mapping[str, Any],
    scales: Mapping[str, Any],
) -> list[Record]:
    """Return the closed forms of the recommendations.

    Args:
        models: Entries of ``config/models.yaml`` with experts in groups, for multicast.
        deployment: A ``Deployment`` as in ``decode_limit``.
        link: A ``Link``.
        host: A ``Host``.
        messages: A ``Messages``.
        networks: A ``Networks``.
        scales: A ``Scales``.

    Returns:
        ``link/*`` (PCIe contention), ``host/bandwidth``, ``messages/*`` (posting by proxy or by the
        GPU), ``latency/*`` (switch latency and radix), ``fence/*``, ``multicast/*`` and
        ``scaling/*``.

    Raises:
        UserError: If an argument is not as described.
    """
    moes = {name: _mixture(name, data) for name, data in models.items()}
    base: Deployment = validate(Deployment, deployment, f"{WHERE}: deployment")
    shared: Link = validate(Link, link, f"{WHERE}: link")
    node: Host = validate(Host, host, f"{WHERE}: host")
    posted: Messages = validate(Messages, messages, f"{WHERE}: messages")
    kinds: Networks = validate(Networks, networks, f"{WHERE}: networks")
    scaled: Scales = validate(Scales, scales, f"{WHERE}: scales")
    return [
        *_contention(base, shared),
        *_host(node),
        *_messages(base, posted),
        *_latency(base, kinds),
        *_sizes(kinds),
        *_fences(base, kinds),
        *(row for name, moe in moes.items() for row in _multicast(base, name, moe)),
        *_scaling(scaled),
    ]


def _mixture(name: str, data: Any) -> MixtureOfExperts:
    where = f"{WHERE}: models: {name}"
    spec: DecoderSpec = validate(DecoderSpec, data, where)
    if not isinstance(spec.feed_forward, MixtureOfExperts):
        raise UserError(f"{where}.feed_forward: found {spec.feed_forward.kind}, expected moe")
    return spec.feed_forward


def _contention(base: Deployment, link: Link) -> Iterator[Record]:
    """Yield what decoding reaches beside a steady stream, and how a dispatch fares in a burst."""
    bandwidth = link.lanes * lane_bandwidth()
    for stream, priority in product(link.streams, (False, True)):
        rate = rate_beside(stream, base.bandwidth, bandwidth, priority=priority)
        steady = {"stream": stream, "priority": priority}
        yield record("link/card_rate", rate, "GB/s", **steady)
        limit = limits(base.model_copy(update={"bandwidth": rate}))
        yield record("link/tokens_per_second", limit["tokens_per_second"], "token/s", **steady)
    dispatch = _dispatch_bytes(base)
    for megabytes, order in product(link.burst_megabytes, DISCIPLINES):
        own, other = finish_times(dispatch, megabytes * 1e6, bandwidth * GIGABYTE, order)
        labels: dict[str, Any] = {"burst_megabytes": megabytes, "order": order}
        yield record("link/dispatch_time", own * MICROSECONDS, "us", **labels)
        yield record("link/burst_time", other * MICROSECONDS, "us", **labels)


def _dispatch_bytes(base: Deployment) -> float:
    return base.tokens * base.experts * base.hidden_size * base.dispatch_bytes


def _host(host: Host) -> Iterator[Record]:
    for encoded in (True, False):
        value = host.lanes * lane_bandwidth(encoded=encoded)
        encoding = "128b/130b" if encoded else "left out"
        yield record("host/bandwidth", value, "GB/s", lanes=host.lanes, encoding=encoding,
                     method="closed_form")  # fmt: skip
    yield record("host/bandwidth", host.printed, "GB/s", lanes=host.lanes, method="printed")


def _messages(base: Deployment, posted: Messages) -> Iterator[Record]:
    """Yield the rate and time of one dispatch, a message for every token and expert."""
    number, size = base.tokens * base.experts, base.hidden_size * base.dispatch_bytes
    bandwidth, latency = base.bandwidth * GIGABYTE, base.latency / MICROSECONDS
    for overhead, (name, posters) in product(posted.overheads, posted.posters.items()):
        labels = {"overhead": overhead, "posted_by": name, "posters": posters}
        seconds = overhead / MICROSECONDS
        rate = message_rate(seconds, posters, size, bandwidth)
        yield record("messages/rate", rate / 1e6, "M/s", **labels)
        time = burst_time(number, seconds, posters, size, bandwidth, latency)
        yield record("messages/dispatch_time", time * MICROSECONDS, "us", **labels)


def _latency(base: Deployment, networks: Networks) -> Iterator[Record]:
    """Yield time per token with the latency of each path, and what one microsecond adds to it."""
    ideal = limits(base.model_copy(update={"latency": 0.0}))["time_per_token"]
    for (kind, latency), (path, links) in product(networks.latencies.items(), PATHS.items()):
        one_way = latency.through(links)
        time = limits(base.model_copy(update={"latency": one_way}))["time_per_token"]
        labels = {"network": kind, "path": path}
        yield record("latency/one_way", one_way, "us", **labels)
        yield record("latency/time_per_token", time, "ms", **labels)
        yield record("latency/added", time / ideal - 1, "1", **labels)
    one = limits(base.model_copy(update={"latency": 1.0}))["time_per_token"]
    yield record("latency/per_microsecond", one - ideal, "ms/us")


def _sizes(networks: Networks) -> Iterator[Record]:
    for radix in networks.radices:
        for layers, tree in ((2, TwoLayerFatTree), (3, ThreeLayerFatTree)):
            family = validate(tree, {"radix": radix}, f"{WHERE}: networks.radices")
            yield record("latency/endpoints", family.counts.endpoints, "endpoints", radix=radix,
                         layers=layers)  # fmt: skip


def _fences(base: Deployment, networks: Networks) -> Iterator[Record]:
    """Yield the time of fences in a layer, over its dispatch and combine, and per token."""
    ideal = communication_time(base) * MICROSECONDS
    for (kind, latency), fences in product(networks.latencies.items(), networks.fences):
        time = fence_time(latency.cross_leaf, fences)
        labels = {"network": kind, "fences": fences}
        yield record("fence/time", time, "us", **labels)
        yield record("fence/over_communication", time / ideal, "1", **labels)
        # A transfer with latency L of decode_limit: two of them for every layer and micro-batch.
        slowed = base.model_copy(update={"latency": base.latency + time / 2})
        yield record("fence/time_per_token", limits(slowed)["time_per_token"], "ms", **labels)


def _multicast(base: Deployment, name: str, moe: MixtureOfExperts) -> Iterator[Record]:
    """Yield copies of a token, and the bytes and time of a device's dispatch and combine."""
    for scheme in SCHEMES:
        number, labels = copies(moe, scheme), {"model": name, "copies": scheme}
        yield record("multicast/copies", number, "1", **labels)
        for operation, size in (("dispatch", base.dispatch_bytes), ("combine", base.combine_bytes)):
            sent = base.tokens * number * base.hidden_size * size
            yield record("multicast/bytes", sent / 1e6, "MB", operation=operation, **labels)
            time = sent / (base.bandwidth * GIGABYTE) * MICROSECONDS
            yield record("multicast/time", time, "us", operation=operation, **labels)


def _scaling(scales: Scales) -> Iterator[Record]:
    for group in scales.groups:
        share = scaling_share(scales.inner, group, scales.columns_per_scale)
        yield record("scaling/operations", share, "1", group=group, inner=scales.inner)
        for ratio, overlapped in product(scales.rate_ratios, (False, True)):
            time = scaling_time_share(share, ratio, overlapped=overlapped)
            yield record("scaling/time", time, "1", group=group, inner=scales.inner,
                         rate_ratio=ratio, overlapped=overlapped)  # fmt: skip
