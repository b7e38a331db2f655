"""Latency by the number of links between switches, from what two of them add.

arXiv 2505.09343, table 5, has latencies through one leaf, and through two leaves and a spine. What
a longer path takes is an inference: that every two links more add as much again. The paper has no
such number.
"""

from pydantic import PositiveFloat, model_validator

from harness.config.base import Spec

CROSS_LEAF_LINKS = 2
# Links between switches by how far apart two endpoints are; pods are of a three-layer fat tree.
DISTANCES = {"same_leaf": 0, "cross_leaf": CROSS_LEAF_LINKS, "cross_pod": 2 * CROSS_LEAF_LINKS}


class Latency(Spec):
    """End-to-end latencies of a small message, in microseconds."""

    same_leaf: PositiveFloat
    cross_leaf: PositiveFloat

    @model_validator(mode="after")
    def _grows(self) -> "Latency":
        if self.cross_leaf < self.same_leaf:
            raise ValueError(f"cross_leaf: found {self.cross_leaf}, expected at least same_leaf, "
                             f"{self.same_leaf}")  # fmt: skip
        return self

    @property
    def per_switch(self) -> float:
        """Microseconds that a switch adds, with the link to it."""
        return (self.cross_leaf - self.same_leaf) / CROSS_LEAF_LINKS

    def through(self, links: int) -> float:
        """Return the latency over a path of so many links between switches, in microseconds."""
        return self.same_leaf + links * self.per_switch
