"""Incast as records: what a burst of many senders to one receiver does to other traffic.

Against it arXiv 2505.09343, section 5.2.2, asks for a virtual queue of the switch per queue pair,
or for congestion control by round-trip times. The paper has no number for either.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from harness.config.base import Spec, validate
from harness.errors import UserError
from harness.records.record import Record, record
from harness.systems.incast.controls import Control, DelayBased, ReceiverPaced, Unlimited
from harness.systems.incast.reference import (
    FIFO_SATURATION,
    mean_wait,
    saturation_throughput,
    simulated_mean_wait,
)
from harness.systems.incast.simulation import Flow, Outcome, Queues, simulate

MICROSECONDS, GIGABYTE = 1e6, 1e9
RECEIVER, OTHER_OUTPUT = 0, 1
ControlName = Literal["none", "delay", "receiver"]
Victim = Literal["other_ports", "same_input", "same_ports"]


class Link(Spec):
    """What packets, links and the switch are like."""

    bandwidth: PositiveFloat = Field(description="GB/s of a link")
    packet_bytes: PositiveInt
    latency: PositiveFloat = Field(description="us from an endpoint through the switch to another")
    buffer_bytes: PositiveInt = Field(description="of an input of the switch")
    iterations: PositiveInt = Field(description="of the switch's matching in a slot")

    @property
    def slot(self) -> float:
        """Microseconds of a packet on a link."""
        return self.packet_bytes / (self.bandwidth * GIGABYTE) * MICROSECONDS

    @property
    def hop(self) -> int:
        """Slots between an endpoint and the switch."""
        return max(1, round(self.latency / 2 / self.slot))

    def slots(self, microseconds: float) -> int:
        """Return a time in whole slots."""
        return round(microseconds / self.slot)

    def packets(self, size: int) -> int:
        """Return the packets of a message of ``size`` bytes."""
        return -(-size // self.packet_bytes)


class Traffic(Spec):
    """A burst from many senders to one receiver, and a message of a victim during it."""

    senders: list[PositiveInt] = Field(min_length=1, description="of the burst, at least 2")
    burst_bytes: PositiveInt = Field(description="of every sender")
    victim_bytes: PositiveInt
    victim_starts: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        min_length=1, description="when, as shares of the least time of the burst"
    )
    spread: NonNegativeFloat = Field(description="us within which senders start at random")
    target_queueing: PositiveFloat = Field(description="us that delay-based control aims at")


class Saturation(Spec):
    """The switch alone, with every queue full or with random arrivals for one output."""

    ports: list[PositiveInt]
    loads: list[float] = Field(description="of an output; below 1")
    wait_ports: PositiveInt = Field(description="inputs that random arrivals come from")
    slots: PositiveInt


def incast(
    link: Mapping[str, Any],
    traffic: Mapping[str, Any],
    queues: Sequence[Queues],
    controls: Sequence[ControlName],
    saturation: Mapping[str, Any],
    seeds: Sequence[int],
) -> list[Record]:
    """Return how long bursts and victims take by queues of the switch and congestion control.

    A victim shares no port with the burst (``other_ports``), the input of one of its senders
    (``same_input``) or also its output (``same_ports``), always on a queue pair of its own.

    Args:
        link: A ``Link``.
        traffic: A ``Traffic``.
        queues: What an input of the switch has: one queue; queues per output in one buffer that
            pauses the link when it is full; queues with buffers of their own, per output or per
            queue pair.
        controls: Congestion control: none, by delay, or by credits of the receiver.
        saturation: A ``Saturation``.
        seeds: Of starting times and random arrivals.

    Returns:
        By queues, control and senders: ``incast/burst_time`` in us until the last byte, with its
        least by closed form, ``incast/burst_time_over_least``, ``incast/peak_backlog`` in bytes in
        the switch for the receiver, ``incast/paused_share``, the share of the burst in which a
        sender waits for credits; by victim and start also ``incast/victim_time`` in us and
        ``incast/victim_share``, its throughput over its max-min fair share. Of the switch alone:
        ``switch/saturation_throughput`` and ``switch/mean_wait`` in slots, simulated and by closed
        form.

    Raises:
        UserError: If an argument is not as described.
    """
    where = "incast"
    links: Link = validate(Link, link, f"{where}: link")
    load: Traffic = validate(Traffic, traffic, f"{where}: traffic")
    alone: Saturation = validate(Saturation, saturation, f"{where}: saturation")
    schemes = validate(list[Queues], queues, f"{where}: queues")
    names = validate(list[ControlName], controls, f"{where}: controls")
    _refuse(links, load, alone)
    rows = list(_closed_forms(links, load, alone))
    for seed in validate(list[int], seeds, f"{where}: seeds"):
        found = [*_bursts(links, load, schemes, names, seed), *_alone(links, alone, seed)]
        rows += [row | {"seed": seed} for row in found]
    return rows


def fair_share(victim: Victim, senders: int) -> float:
    """Return the max-min fair rate of a victim during the burst, as a share of a link.

    Every sender of the burst is held to its part of the receiver's link, and leaves the rest of its
    own link to others (Bertsekas and Gallager, Data Networks, section 6.5.2).
    """
    return {
        "other_ports": 1.0,
        "same_input": 1 - 1 / senders,
        "same_ports": 1 / (senders + 1),
    }[victim]


def least_burst_time(link: Link, load: Traffic, senders: int) -> float:
    """Return the microseconds of a burst that keeps the receiver's link busy throughout."""
    return (2 * link.hop + senders * link.packets(load.burst_bytes)) * link.slot


def _refuse(link: Link, load: Traffic, alone: Saturation) -> None:
    if min(load.senders) < 2:
        raise UserError(f"incast: traffic.senders: found {min(load.senders)}, expected at least 2")
    if any(not 0 < value < 1 for value in alone.loads):
        raise UserError(f"incast: saturation.loads: found {alone.loads}, expected shares below 1")
    if link.packets(link.buffer_bytes) < len(get_args(Victim)):
        raise UserError(f"incast: link.buffer_bytes: found {link.buffer_bytes}, expected at least "
                        f"{len(get_args(Victim))} packets of {link.packet_bytes}")  # fmt: skip


def _closed_forms(link: Link, load: Traffic, alone: Saturation) -> Iterator[Record]:
    for senders in load.senders:
        least = least_burst_time(link, load, senders)
        yield record("incast/burst_time", least, "us", method="closed_form", senders=senders)
    for queues, limit in (("fifo", FIFO_SATURATION), ("per_output", 1.0)):
        yield record("switch/saturation_throughput", limit, "1", method="closed_form",
                     queues=queues)  # fmt: skip
    for value in alone.loads:
        wait = mean_wait(value, alone.wait_ports)
        yield record("switch/mean_wait", wait, "slots", method="closed_form", load=value)


def _alone(link: Link, alone: Saturation, seed: int) -> Iterator[Record]:
    for ports in alone.ports:
        for queues in ("fifo", "per_output"):
            value = saturation_throughput(
                ports, queues=queues, slots=alone.slots, iterations=link.iterations, seed=seed
            )
            yield record("switch/saturation_throughput", value, "1", method="simulated",
                         queues=queues, ports=ports)  # fmt: skip
    for load in alone.loads:
        wait = simulated_mean_wait(load, alone.wait_ports, slots=alone.slots, seed=seed)
        yield record("switch/mean_wait", wait, "slots", method="simulated", load=load)


def _bursts(
    link: Link, load: Traffic, schemes: Sequence[Queues], controls: Sequence[ControlName], seed: int
) -> Iterator[Record]:
    for senders, queues, control in product(load.senders, schemes, controls):
        labels = {"queues": queues, "control": control, "senders": senders}
        for victim, start in product(get_args(Victim), load.victim_starts):
            flows = _flows(link, load, senders, victim, start, seed)
            outcome = simulate(
                flows, queues, _control(control, flows, link, load), hop=link.hop,
                buffer=link.packets(link.buffer_bytes), iterations=link.iterations,
            )  # fmt: skip
            yield from _victim(link, flows[-1], outcome, victim=victim, start=start, **labels)
            # A victim that shares nothing with the burst leaves it as it is without a victim.
            if (victim, start) == ("other_ports", load.victim_starts[0]):
                yield from _burst(link, load, outcome, **labels)


def _flows(
    link: Link, load: Traffic, senders: int, victim: Victim, start: float, seed: int
) -> list[Flow]:
    """Return the burst and, last, the victim; its port is a sender's or one more."""
    chance = random.Random(f"{seed} {senders}")
    latest = link.slots(load.spread)
    packets = link.packets(load.burst_bytes)
    burst = [Flow(port, RECEIVER, packets, chance.randint(0, latest)) for port in range(senders)]
    return [*burst, Flow(
        port=senders if victim == "other_ports" else 0,
        output=RECEIVER if victim == "same_ports" else OTHER_OUTPUT,
        packets=link.packets(load.victim_bytes),
        start=link.slots(start * least_burst_time(link, load, senders)),
    )]  # fmt: skip


def _control(name: ControlName, flows: Sequence[Flow], link: Link, load: Traffic) -> Control:
    round_trip = 4 * link.hop
    if name == "delay":
        return DelayBased(len(flows), round_trip, max(1, link.slots(load.target_queueing)))
    if name == "receiver":
        return ReceiverPaced(
            [flow.output for flow in flows], [flow.packets for flow in flows],
            [flow.start for flow in flows], round_trip,
        )  # fmt: skip
    return Unlimited()


def _victim(link: Link, flow: Flow, outcome: Outcome, **labels: Any) -> Iterator[Record]:
    slots = outcome.finished[-1] - flow.start
    fair = fair_share(labels["victim"], labels["senders"])
    share = flow.packets / (slots - 2 * link.hop) / fair
    yield record("incast/victim_time", slots * link.slot, "us", **labels)
    yield record("incast/victim_share", share, "1", **labels)


def _burst(link: Link, load: Traffic, outcome: Outcome, **labels: Any) -> Iterator[Record]:
    senders = labels["senders"]
    slots = max(outcome.finished[:senders])
    time, least = slots * link.slot, least_burst_time(link, load, senders)
    backlog = outcome.peak_backlog[RECEIVER] * link.packet_bytes
    paused = sum(outcome.paused[port] for port in range(senders)) / senders / slots
    yield record("incast/burst_time", time, "us", method="simulated", **labels)
    yield record("incast/burst_time_over_least", time / least, "1", **labels)
    yield record("incast/peak_backlog", backlog, "B", **labels)
    yield record("incast/paused_share", paused, "1", **labels)
