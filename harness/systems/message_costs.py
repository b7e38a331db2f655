"""What messages cost besides their bytes: who posts them, how far they go, what orders them.

arXiv 2505.09343, sections 5.2 and 6.4. Messages are pipelined as in the LogGP model (Alexandrov et
al., SPAA 1995): each takes the one who posts it an overhead and the wire its bytes.
"""


def message_rate(overhead: float, posters: int, size: float, bandwidth: float) -> float:
    """Return messages per second that both the posters and the wire keep up with.

    Args:
        overhead: Seconds in which a poster posts one message.
        posters: Threads that post at the same time; one for a proxy on the CPU.
        size: Bytes of a message.
        bandwidth: Bytes per second.
    """
    wire = bandwidth / size
    return wire if overhead == 0 else min(posters / overhead, wire)


def burst_time(
    messages: int, overhead: float, posters: int, size: float, bandwidth: float, latency: float
) -> float:
    """Return the seconds until the last of some messages has arrived.

    Args:
        messages: Their number.
        overhead: Seconds in which a poster posts one message.
        posters: Threads that post at the same time.
        size: Bytes of a message.
        bandwidth: Bytes per second.
        latency: Seconds that a message is under way.
    """
    return latency + messages / message_rate(overhead, posters, size, bandwidth)


def fence_time(latency: float, fences: int) -> float:
    """Return the time of fences, each of which waits for a message there and an answer back.

    Args:
        latency: One way, in any unit.
        fences: Their number.

    Returns:
        The time in the unit of ``latency``.
    """
    return 2 * latency * fences
