"""Flows through one switch, slot by slot, without loss: senders wait for credits of its queues.

A packet takes ``hop`` slots from a sender to the switch and as many from there to the receiver;
credits and acknowledgements come back as fast, on a way of their own.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.systems.incast.controls import Control, Line
from harness.systems.incast.switch import Packet, Switch

Queues = Literal["fifo", "shared_buffer", "per_output", "per_queue_pair"]


@dataclass(frozen=True)
class Flow:
    """A message on a queue pair of its own.

    Attributes:
        port: The sender's, and the input of the switch that it leads to.
        output: Of the switch.
        packets: Of the message.
        start: The slot in which it is handed to the sender.
    """

    port: int
    output: int
    packets: int
    start: int


@dataclass(frozen=True)
class Outcome:
    """What a simulation found.

    Attributes:
        finished: The slot after which a flow's last packet is with its receiver, by flow.
        peak_backlog: The most packets that waited in the switch for an output, by output.
        paused: Slots in which a sender had something to send and no credit, by port.
    """

    finished: tuple[int, ...]
    peak_backlog: dict[int, int]
    paused: dict[int, int]


def queue_of(number: int, flow: Flow, queues: Queues) -> tuple[int, ...]:
    """Return what names the queue of a flow: its port, and what else tells queues apart."""
    if queues == "fifo":
        return (flow.port,)
    if queues in ("shared_buffer", "per_output"):
        return flow.port, flow.output
    return flow.port, flow.output, number


def buffer_of(number: int, flow: Flow, queues: Queues) -> tuple[int, ...]:
    """Return what names the buffer that a flow needs credit for.

    With ``shared_buffer`` a full input pauses everything on its link, as priority flow control does
    (IEEE 802.1Qbb); otherwise every queue has a buffer of its own.
    """
    return (flow.port,) if queues == "shared_buffer" else queue_of(number, flow, queues)


def simulate(
    flows: Sequence[Flow], queues: Queues, control: Control, *, hop: int, buffer: int,
    iterations: int,
) -> Outcome:  # fmt: skip
    """Send all flows and return when they were done.

    Args:
        flows: What is sent.
        queues: How the buffer of an input is divided.
        control: Congestion control of the endpoints.
        hop: Slots between an endpoint and the switch, at least 1.
        buffer: Packets that an input of the switch holds; queues with a buffer of their own get
            equal parts of it.
        iterations: Of the switch's matching.

    Raises:
        ValueError: If an input has more buffers than packets that it holds.
    """
    return _Simulation(flows, queues, control, hop, buffer, iterations).run()


class _Simulation:
    def __init__(
        self, flows: Sequence[Flow], queues: Queues, control: Control, hop: int, buffer: int,
        iterations: int,
    ) -> None:  # fmt: skip
        self.flows, self.control, self.hop = flows, control, hop
        names = [queue_of(number, flow, queues) for number, flow in enumerate(flows)]
        ordered = sorted(set(names))
        self.queues = [ordered.index(name) for name in names]
        self.switch = Switch([port for port, *_ in ordered], iterations)
        self.buffers = [buffer_of(number, flow, queues) for number, flow in enumerate(flows)]
        self.credits = _credits(self.buffers, buffer)
        self.arrivals: Line[tuple[int, Packet]] = Line(hop)
        self.returned: Line[tuple[int, ...]] = Line(hop)
        self.acknowledgements: Line[Packet] = Line(3 * hop)
        self.senders = {flow.port: deque[int]() for flow in flows}
        for number, flow in enumerate(flows):
            self.senders[flow.port].append(number)
        self.unsent = [flow.packets for flow in flows]
        self.underway = [flow.packets for flow in flows]
        self.finished = [0] * len(flows)
        self.peak = {flow.output: 0 for flow in flows}
        self.paused = {flow.port: 0 for flow in flows}

    def run(self) -> Outcome:
        slot, left = 0, len(self.flows)
        while left:
            self._deliver(slot)
            self.control.advance(slot)
            for port, waiting in self.senders.items():
                if waiting:
                    self._send(port, waiting, slot)
            left -= self._switch(slot)
            slot += 1
        return Outcome(tuple(self.finished), self.peak, self.paused)

    def _deliver(self, slot: int) -> None:
        for queue, packet in self.arrivals.due(slot):
            self.switch.push(queue, packet)
        for buffer in self.returned.due(slot):
            self.credits[buffer] += 1
        for packet in self.acknowledgements.due(slot):
            self.control.acknowledged(packet.flow, slot, slot - packet.sent)

    def _send(self, port: int, waiting: deque[int], slot: int) -> None:
        """Send a packet of the first flow in turn that has credit and may."""
        blocked = False
        for number in waiting:
            flow = self.flows[number]
            if slot < flow.start or not self.control.allows(number, slot):
                continue
            if not self.credits[self.buffers[number]]:
                blocked = True
                continue
            self.credits[self.buffers[number]] -= 1
            self.arrivals.put(slot, (self.queues[number], Packet(flow.output, number, slot)))
            self.control.sent(number, slot)
            self.unsent[number] -= 1
            waiting.remove(number)
            if self.unsent[number]:
                waiting.append(number)
            return
        self.paused[port] += blocked

    def _switch(self, slot: int) -> int:
        """Let the switch pass on what it can; return how many flows are thereby done."""
        for output in self.peak:
            self.peak[output] = max(self.peak[output], self.switch.backlog[output])
        done = 0
        for _, packet in self.switch.step():
            self.returned.put(slot, self.buffers[packet.flow])
            self.acknowledgements.put(slot, packet)
            self.underway[packet.flow] -= 1
            if not self.underway[packet.flow]:
                self.finished[packet.flow] = slot + 1 + self.hop
                done += 1
        return done


def _credits(buffers: Sequence[tuple[int, ...]], packets: int) -> dict[tuple[int, ...], int]:
    """Return the packets that every buffer holds: those of an input get equal parts."""
    distinct = set(buffers)
    of_input = Counter(port for port, *_ in distinct)
    port, most = of_input.most_common(1)[0]
    if packets < most:
        raise ValueError(
            f"an input of the switch holds {packets} packets, expected at least one for each of "
            f"the {most} buffers at input {port}"
        )
    return {name: packets // of_input[name[0]] for name in distinct}
