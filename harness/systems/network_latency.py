"""Latency by the number of links between switches, from what two of them add.

arXiv 2505.09343, table 5, has latencies through one leaf, and through two leaves and a spine. What
a longer path takes is an inference: that every two links more add as much again. The paper has no
such number.
"""

from pydantic import PositiveFloat, model_validator

from harness.config.base import Spec

CROSS_LEAF_LINKS = 2


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

    def through(self, links: int) -> float:
        """Return the latency over a path of so many links between switches."""
        per_link = (self.cross_leaf - self.same_leaf) / CROSS_LEAF_LINKS
        return self.same_leaf + links * per_link
