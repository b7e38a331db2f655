"""A link that expert-parallel traffic shares with transfers of the key-value cache.

arXiv 2505.09343, section 4.5: moving tens of gigabytes per second of cache from the host's memory
saturates PCIe and slows what goes to the network card over the same link, for which the paper asks
for traffic classes. Links are fluid and never idle while something is left to send.
"""

from typing import Literal

# PCI Express Base Specification 5.0: transfers per second and lane, and how many of 130 bits carry.
GIGATRANSFERS = 32.0
ENCODING = 128 / 130
BITS = 8
# first: the other traffic arrived before; fair: equal shares; priority: this traffic goes ahead.
Discipline = Literal["first", "fair", "priority"]
DISCIPLINES: tuple[Discipline, ...] = ("first", "fair", "priority")


def lane_bandwidth(*, encoded: bool = True) -> float:
    """Return GB/s of a PCIe 5.0 lane in one direction, with what its encoding takes or without."""
    return GIGATRANSFERS / BITS * (ENCODING if encoded else 1)


def finish_times(
    size: float, other: float, bandwidth: float, order: Discipline
) -> tuple[float, float]:
    """Return when two bursts that are there at once have passed, this one and the other one.

    Whatever the order, the later of the two ends after ``(size + other) / bandwidth``.

    Args:
        size: Bytes of this burst.
        other: Bytes of the other one.
        bandwidth: Bytes per second.
        order: How the link is shared.

    Returns:
        Seconds.
    """
    last = (size + other) / bandwidth
    match order:
        case "priority":
            return size / bandwidth, last
        case "first":
            return last, other / bandwidth
        case "fair":
            first = 2 * min(size, other) / bandwidth
            return (first, last) if size <= other else (last, first)


def rate_beside(stream: float, card: float, bandwidth: float, *, priority: bool) -> float:
    """Return the rate that is left for a network card beside a steady stream on its link.

    Without priority it is max-min fair: whoever asks for less than half gets all of it, and the
    other one the rest.

    Args:
        stream: What the stream asks for, in any unit per second; like the others.
        card: Rate of the network card.
        bandwidth: Of the link.
        priority: Whether the card's traffic goes ahead.
    """
    share = bandwidth if priority else max(bandwidth - stream, bandwidth / 2)
    return min(card, share)
