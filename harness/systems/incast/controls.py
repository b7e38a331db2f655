"""When a sender may send: congestion control at the endpoints.

Times are in slots, windows in packets: the time of one packet on a link is the unit.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")


class Line(Generic[Item]):
    """Delivers after a fixed number of slots, in order."""

    def __init__(self, delay: int) -> None:
        self._delay = delay
        self._items: deque[tuple[int, Item]] = deque()

    def put(self, slot: int, item: Item) -> None:
        """Send an item in a slot."""
        self._items.append((slot + self._delay, item))

    def due(self, slot: int) -> Iterator[Item]:
        """Yield what has arrived by a slot, once."""
        while self._items and self._items[0][0] <= slot:
            yield self._items.popleft()[1]


class Control(Protocol):
    """What the endpoints of all flows do about congestion."""

    def advance(self, slot: int) -> None:
        """Let a slot begin."""

    def allows(self, flow: int, slot: int) -> bool:
        """Return whether a flow may send a packet now."""

    def sent(self, flow: int, slot: int) -> None:
        """Take note of a packet that a flow sent."""

    def acknowledged(self, flow: int, slot: int, round_trip: int) -> None:
        """Take note of an acknowledgement and the slots since its packet was sent."""


class Unlimited:
    """No congestion control: only flow control by credits of the switch holds a sender back."""

    def advance(self, slot: int) -> None:
        """Let a slot begin."""

    def allows(self, flow: int, slot: int) -> bool:
        """Return True."""
        return True

    def sent(self, flow: int, slot: int) -> None:
        """Forget the packet."""

    def acknowledged(self, flow: int, slot: int, round_trip: int) -> None:
        """Forget the acknowledgement."""


class DelayBased:
    """Windows that follow the round trip, as Swift has them for delays of the network.

    Algorithm 1 of Kumar et al., SIGCOMM 2020, with its additive increase 1, beta 0.8 and largest
    decrease by half, at most once per round trip; windows below one packet are paced. Its target
    here is fixed: what it adds for hops and for many flows (section 3.5) is left out, as are losses
    and the delays of hosts. A flow starts with a window that fills the link, as RDMA does.
    """

    INCREASE = 1.0
    BETA = 0.8
    LARGEST_DECREASE = 0.5
    LEAST_WINDOW = 0.001

    def __init__(self, flows: int, round_trip: int, queueing: int) -> None:
        """Start all windows.

        Args:
            flows: Number of flows.
            round_trip: Slots without queueing.
            queueing: Slots of queueing that are aimed at.
        """
        self._target = round_trip + queueing
        self._windows = [float(round_trip)] * flows
        self._in_flight = [0] * flows
        self._paced_until = [0.0] * flows
        self._last_decrease = [-round_trip] * flows
        self._round_trips = [round_trip] * flows

    def advance(self, slot: int) -> None:
        """Let a slot begin."""

    def allows(self, flow: int, slot: int) -> bool:
        """Return whether the window has room, or the pause after a paced packet is over."""
        if self._windows[flow] < 1:
            return not self._in_flight[flow] and slot >= self._paced_until[flow]
        return self._in_flight[flow] + 1 <= self._windows[flow]

    def sent(self, flow: int, slot: int) -> None:
        """Count the packet; below a window of one, wait until the next."""
        self._in_flight[flow] += 1
        if self._windows[flow] < 1:
            self._paced_until[flow] = slot + self._round_trips[flow] / self._windows[flow]

    def acknowledged(self, flow: int, slot: int, round_trip: int) -> None:
        """Grow the window if the round trip is below the target, else shrink it."""
        self._in_flight[flow] -= 1
        self._round_trips[flow] = round_trip
        window = self._windows[flow]
        if round_trip < self._target:
            window += self.INCREASE / max(window, 1.0)
        elif slot - self._last_decrease[flow] >= round_trip:
            excess = self.BETA * (round_trip - self._target) / round_trip
            window *= max(1 - excess, 1 - self.LARGEST_DECREASE)
            self._last_decrease[flow] = slot
        self._windows[flow] = max(window, self.LEAST_WINDOW)


class ReceiverPaced:
    """Every receiver grants one packet per slot to the flows that asked, in turn.

    Credits of the receiver, as in ExpressPass (Cho, Jang and Han, SIGCOMM 2017), without its
    feedback on lost credits, as none is lost here. A message costs one more round trip: a request
    that says how many packets there are, and the first grant.
    """

    def __init__(
        self, receivers: Sequence[int], packets: Sequence[int], starts: Sequence[int],
        round_trip: int,
    ) -> None:  # fmt: skip
        """Start without any grant.

        Args:
            receivers: Of every flow.
            packets: Of every flow.
            starts: The slot in which every flow asks.
            round_trip: Slots without queueing; requests and grants take half of it.
        """
        self._receivers = receivers
        self._ungranted = list(packets)
        self._starts = sorted(range(len(starts)), key=starts.__getitem__, reverse=True)
        self._start_slots = starts
        self._requests: Line[int] = Line(round_trip // 2)
        self._grants: Line[int] = Line(round_trip // 2)
        self._asking: dict[int, deque[int]] = {receiver: deque() for receiver in receivers}
        self._granted = [0] * len(packets)

    def advance(self, slot: int) -> None:
        """Let requests and grants travel, and every receiver grant a packet."""
        while self._starts and self._start_slots[self._starts[-1]] <= slot:
            self._requests.put(slot, self._starts.pop())
        for flow in self._requests.due(slot):
            self._asking[self._receivers[flow]].append(flow)
        for asking in self._asking.values():
            if asking:
                self._grant(asking, slot)
        for flow in self._grants.due(slot):
            self._granted[flow] += 1

    def _grant(self, asking: deque[int], slot: int) -> None:
        flow = asking.popleft()
        self._grants.put(slot, flow)
        self._ungranted[flow] -= 1
        if self._ungranted[flow]:
            asking.append(flow)

    def allows(self, flow: int, slot: int) -> bool:
        """Return whether a grant is left."""
        return self._granted[flow] > 0

    def sent(self, flow: int, slot: int) -> None:
        """Use a grant."""
        self._granted[flow] -= 1

    def acknowledged(self, flow: int, slot: int, round_trip: int) -> None:
        """Forget the acknowledgement."""
