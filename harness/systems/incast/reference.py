"""The switch alone, where queueing theory says what it has to do."""

import math
import random
from typing import Literal

from harness.systems.incast.switch import Packet, Switch

# Of queues in which packets for all outputs wait in one line, with many ports: Karol, Hluchyj and
# Morgan 1987, section III.
FIFO_SATURATION = 2 - math.sqrt(2)
WARM_UP = 0.1


def mean_wait(load: float, ports: int) -> float:
    """Return the slots that packets wait for an output with random arrivals from all inputs.

    Karol, Hluchyj and Morgan 1987, equation 6: (N - 1) / N of the wait load / (2 (1 - load)) in a
    queue M/D/1, which Pollaczek and Khinchine give.

    Args:
        load: Packets per slot for the output, below 1.
        ports: Inputs, each of which has one with probability ``load / ports``.
    """
    return (ports - 1) / ports * load / (2 * (1 - load))


def saturation_throughput(
    ports: int, *, queues: Literal["fifo", "per_output"], slots: int, iterations: int, seed: int
) -> float:
    """Return packets per output and slot through a switch whose inputs never run empty.

    Packets are for all outputs with equal probability. A queue per output holds two at any time,
    one queue for all outputs as well.

    Args:
        ports: Inputs, and outputs.
        queues: One queue per input, or one per input and output.
        slots: To count in, after a tenth more to warm up.
        iterations: Of the switch's matching.
        seed: Of the destinations.
    """
    chance = random.Random(f"{seed} {ports}")
    width = 1 if queues == "fifo" else ports
    switch = Switch([port for port in range(ports) for _ in range(width)], iterations)

    def refill(queue: int) -> None:
        output = chance.randrange(ports) if queues == "fifo" else queue % ports
        switch.push(queue, Packet(output, queue, 0))

    for queue in [*range(ports * width)] * 2:
        refill(queue)
    warm_up, passed = round(WARM_UP * slots), 0
    for slot in range(warm_up + slots):
        left = switch.step()
        for queue, _ in left:
            refill(queue)
        passed += len(left) * (slot >= warm_up)
    return passed / (slots * ports)


def simulated_mean_wait(load: float, ports: int, *, slots: int, seed: int) -> float:
    """Return the slots that packets for one output wait, with random arrivals at every input.

    Args:
        load: Packets per slot for the output, below 1.
        ports: Inputs, each of which has one with probability ``load / ports``.
        slots: To count in, after a tenth more to warm up.
        seed: Of the arrivals.
    """
    chance = random.Random(f"{seed} {load}")
    switch = Switch(range(ports), iterations=1)
    warm_up = round(WARM_UP * slots)
    waits = []
    for slot in range(warm_up + slots):
        for port in range(ports):
            if chance.random() < load / ports:
                switch.push(port, Packet(0, port, slot))
        waits += [slot - packet.sent for _, packet in switch.step() if slot >= warm_up]
    return sum(waits) / len(waits)
