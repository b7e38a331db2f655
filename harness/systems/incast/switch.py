"""An input-queued switch that matches inputs and outputs anew in every time slot.

In a slot, the time of a packet on a link, every input sends at most one packet and every output
gets at most one. Which ones is found by iSLIP (McKeown, IEEE/ACM Transactions on Networking 7(2),
1999): outputs grant and inputs accept in turn, from pointers that only an accepted grant moves.
With one queue per input this is first in, first out: a packet waits behind those for other outputs
(Karol, Hluchyj and Morgan, IEEE Transactions on Communications 35(12), 1987).
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Packet(NamedTuple):
    """What queues hold: where a packet leaves, whose it is and the slot in which it was sent."""

    output: int
    flow: int
    sent: int


class Switch:
    """Queues at the inputs of a crossbar.

    Attributes:
        backlog: Packets in the switch by the output that they wait for.
    """

    def __init__(self, inputs: Sequence[int], iterations: int) -> None:
        """Build an empty switch.

        Args:
            inputs: The input that every queue belongs to; queues are told apart by their place.
            iterations: Rounds of grants and accepts in a slot.
        """
        self.backlog: Counter[int] = Counter()
        self._inputs = tuple(inputs)
        self._iterations = iterations
        self._queues: list[deque[Packet]] = [deque() for _ in inputs]
        # By output: the queues whose first packet goes there.
        self._requests: defaultdict[int, set[int]] = defaultdict(set)
        self._grant_pointers: Counter[int] = Counter()
        self._accept_pointers: Counter[int] = Counter()

    def push(self, queue: int, packet: Packet) -> None:
        """Put a packet at the end of a queue."""
        if not self._queues[queue]:
            self._requests[packet.output].add(queue)
        self._queues[queue].append(packet)
        self.backlog[packet.output] += 1

    def step(self) -> list[tuple[int, Packet]]:
        """Let a slot pass; return the packets that left, each with its queue."""
        return [(queue, self._pop(queue)) for queue in self._match()]

    def _pop(self, queue: int) -> Packet:
        packets = self._queues[queue]
        packet = packets.popleft()
        self._requests[packet.output].discard(queue)
        if packets:
            self._requests[packets[0].output].add(queue)
        self.backlog[packet.output] -= 1
        return packet

    def _match(self) -> list[int]:
        chosen: dict[int, int] = {}  # the queue of every matched input
        open_outputs = [output for output, queues in self._requests.items() if queues]
        for iteration in range(self._iterations):
            grants = self._grants(open_outputs, chosen)
            if not grants:
                break
            for port, offers in grants.items():
                queue = self._next(offers, self._accept_pointers[port])
                chosen[port] = queue
                output = offers[queue]
                open_outputs.remove(output)
                if iteration == 0:
                    self._grant_pointers[output] = self._accept_pointers[port] = queue + 1
        return list(chosen.values())

    def _grants(self, outputs: Iterable[int], chosen: dict[int, int]) -> dict[int, dict[int, int]]:
        """Return by input the queues that were granted an output, with that output."""
        grants: defaultdict[int, dict[int, int]] = defaultdict(dict)
        for output in outputs:
            free = [q for q in self._requests[output] if self._inputs[q] not in chosen]
            if free:
                queue = self._next(free, self._grant_pointers[output])
                grants[self._inputs[queue]][queue] = output
        return grants

    def _next(self, queues: Iterable[int], pointer: int) -> int:
        """Return the first queue from ``pointer`` on, in turn."""
        count = len(self._queues)
        return min(queues, key=lambda queue: (queue - pointer) % count)
