"""How fast flows get through a network that shares its links fairly.

A fluid model: a flow has one rate, which it uses on all of its links in fixed shares, and rates are
max-min fair, what ideal congestion control would make of them. It knows no packets, queues or
latencies.

Shape suffixes: L directed links, F flows, E endpoints.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
# Links that are full, or flows that finish, within this relative distance do so together.
SAME = 1e-9


def max_min_rates(usage_LF: sparse.csr_array, capacity_L: Floats) -> Floats:
    """Return max-min fair rates: none can be raised without lowering one that is not larger.

    Progressive filling (Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2): all rates
    grow alike until a link is full; those through it stay, the others go on. Shares other than 0
    and 1 change nothing: rates then have a bottleneck each, a full link on which no rate is larger,
    and only max-min fair rates do (Radunovic and Le Boudec, IEEE/ACM Trans. Networking 2007).

    Args:
        usage_LF: What a flow of rate one takes of each link.
        capacity_L: Of each link, above zero.

    Returns:
        Shape (F,), infinite for flows that use no link.
    """
    by_link = usage_LF.copy()
    by_link.eliminate_zeros()
    by_flow = by_link.tocsc()
    rates, growing = np.full(by_link.shape[1], np.inf), np.ones(by_link.shape[1], dtype=bool)
    left, slope, users = capacity_L.copy(), by_link.sum(axis=1), np.diff(by_link.indptr)
    while (loaded := np.flatnonzero(users)).size:
        levels = left[loaded] / slope[loaded]
        full = loaded[levels <= levels.min() * (1 + SAME)]
        flows = np.unique(by_link[full].indices)
        flows = flows[growing[flows]]
        rates[flows], growing[flows] = levels.min(), False
        stopped = by_flow[:, flows]
        taken = np.bincount(stopped.indices, stopped.data, minlength=len(left))
        slope, left = slope - taken, left - levels.min() * taken
        users = users - np.bincount(stopped.indices, minlength=len(left))
    return rates


def finish_times(usage_LF: sparse.csr_array, capacity_L: Floats, sizes_F: Floats) -> Floats:
    """Return when each flow has sent all of its bytes, if all start at once.

    Rates are max-min fair among the flows that are left, and change when one finishes.

    Args:
        usage_LF: What a flow of rate one takes of each link; every flow uses some.
        capacity_L: Of each link.
        sizes_F: Bytes of each flow.
    """
    times, left, now = np.zeros(len(sizes_F)), sizes_F.astype(float), 0.0
    running = np.arange(len(sizes_F))
    by_flow = usage_LF.tocsc()
    while running.size:
        rates = max_min_rates(by_flow[:, running].tocsr(), capacity_L)
        needed = left[running] / rates
        step = needed.min()
        now += step
        done = needed <= step * (1 + SAME)
        times[running[done]] = now
        left[running] -= step * rates
        running = running[~done]
    return times


def equal_flows_time(load_L: Floats, capacity_L: Floats) -> float:
    """Return when the last of many flows of equal size finishes: the busiest link's time.

    All rates grow alike until the first link is full, which is the one with the largest load over
    capacity; no flow is slower than the ones through it, so all have finished when they have.

    Args:
        load_L: Bytes that go through each link in all.
        capacity_L: Of each link.
    """
    return float((load_L / capacity_L).max())


def all_to_all(endpoints: int) -> Floats:
    """Return the demand of one byte from every endpoint to every other one, shape (E, E)."""
    return 1.0 - np.eye(endpoints)
