"""What can be measured of a network's graph: distances and bisection."""

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import maximum_flow, shortest_path
from scipy.sparse.linalg import eigsh

from harness.systems.topologies import Integers, Topology


def hops(topology: Topology, sources: Integers) -> np.ndarray:
    """Return links on a shortest path, infinite where there is none.

    Args:
        topology: The network.
        sources: Switches.

    Returns:
        Shape (sources, switches).
    """
    return shortest_path(topology.adjacency, unweighted=True, indices=sources)


def diameter(topology: Topology) -> int:
    """Return the most links between two switches with endpoints that are joined at all.

    No link joins planes; nodes forward between them.
    """
    leaves = np.unique(topology.endpoint_switches)
    found = hops(topology, topology.representatives)[:, leaves]
    return int(found[np.isfinite(found)].max())


def flow_between_halves(topology: Topology) -> int:
    """Return how many links' worth the first half of the endpoints can send to the second half.

    The largest flow; half of the endpoints if the network has full bisection.
    """
    n, e = topology.switches, len(topology.endpoint_switches)
    first, second = np.split(topology.endpoint_switches, [e // 2])
    source, sink = n, n + 1
    # Parallel entries add up, so that a switch with ten endpoints can send ten links' worth.
    starts = np.concatenate([*topology.links.T, np.full(len(first), source), second])
    ends = np.concatenate([*topology.links.T[::-1], first, np.full(len(second), sink)])
    ones = np.ones(len(starts), dtype=np.int32)
    capacity = sparse.csr_array((ones, (starts, ends)), shape=(n + 2, n + 2))
    return int(maximum_flow(capacity, source, sink).flow_value)


def spectral_bisection(topology: Topology) -> float:
    """Return a lower bound on the links between any two halves of the switches.

    Half the second eigenvalue of the Laplacian times half of the switches (Fiedler 1973).
    """
    adjacency = topology.adjacency.astype(float)
    degrees = adjacency.sum(axis=0)
    shift = degrees.max()
    # The largest eigenvalues of shift - Laplacian, of which the first is the shift itself.
    largest = eigsh(adjacency + sparse.diags_array(shift - degrees), k=2, which="LA",
                    return_eigenvectors=False, v0=np.ones(topology.switches)
                    + np.linspace(0, 1, topology.switches))  # fmt: skip
    return float(shift - largest.min()) * topology.switches / 4
