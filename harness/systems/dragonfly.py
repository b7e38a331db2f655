"""Dragonfly: groups of switches that act as one switch with many ports."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from harness.config.base import Spec
from harness.systems.topologies import Counts, Integers, Topology, doublings


class Dragonfly(Spec):
    """Fully linked groups, any two of which have at least one link (Kim et al., ISCA 2008).

    Global ports beyond one per other group go round the groups again, the same for every group. One
    port per group stays free if neither the groups nor those left over are even.
    """

    kind: Literal["dragonfly"] = "dragonfly"
    radix: PositiveInt = Field(description="ports of a switch")
    group_switches: PositiveInt = Field(description="a, switches of a group")
    endpoints_per_switch: PositiveInt = Field(description="p")
    global_links: PositiveInt = Field(description="h, ports of a switch to other groups")
    groups: PositiveInt | None = Field(None, description="none: the canonical a h + 1")

    @model_validator(mode="after")
    def _possible(self) -> "Dragonfly":
        used = self.group_switches - 1 + self.endpoints_per_switch + self.global_links
        if used > self.radix:
            raise ValueError(f"radix: found {self.radix}, expected at least {used}: the ports to "
                             "the group, to endpoints and to other groups")  # fmt: skip
        if self.group_count > self.canonical_groups:
            raise ValueError(
                f"groups: found {self.groups}, expected at most {self.canonical_groups}, one more "
                "than a group has ports to other groups"
            )
        return self

    @property
    def canonical_groups(self) -> int:
        """Groups of which any two have exactly one link."""
        return self.group_switches * self.global_links + 1

    @property
    def group_count(self) -> int:
        """Groups in this network."""
        return self.canonical_groups if self.groups is None else self.groups

    @property
    def counts(self) -> Counts:
        """``g a`` switches, ``g a (a-1)/2`` local and ``g a h/2`` global links for ``g`` groups."""
        groups, size = self.group_count, self.group_switches
        ports = size * self.global_links if groups > 1 else 0
        if groups % 2 and ports % 2:
            ports -= 1
        local, switches = groups * size * (size - 1) // 2, groups * size
        endpoints = switches * self.endpoints_per_switch
        return Counts(endpoints, switches, local + groups * ports // 2, local)

    def sizes(self) -> Iterator[Counts]:
        """Yield the counts of smaller ones of the same switches, then of this one."""
        for groups in doublings(self.group_count):
            yield self.model_copy(update={"groups": groups}).counts

    def build(self) -> Topology:
        """Return the graph; the switches of a group follow one another."""
        size, firsts = self.group_switches, self.group_switches * np.arange(self.group_count)
        inside = np.stack(np.triu_indices(size, 1), axis=1)
        local = (firsts[:, None, None] + inside).reshape(-1, 2)
        switches = self.group_count * size
        return Topology(
            switches=switches,
            endpoint_switches=np.repeat(np.arange(switches), self.endpoints_per_switch),
            links=np.concatenate([local, *self._global_links(firsts)]),
            local_links=len(local),
            # Rotating the groups maps every link to a link.
            representatives=np.arange(size),
            layers=np.zeros(switches, dtype=np.int64),
            groups=np.repeat(np.arange(self.group_count), size),
        )

    def _global_links(self, firsts: Integers) -> Iterator[Integers]:
        """Yield the links between groups at the same distance, shape (links, 2)."""
        groups, port = len(firsts), 0
        while groups > 1 and (distances := self._distances(groups, port)):
            # Distances increase and come with their negatives: mirrored places are the two ends.
            for place, distance in enumerate(distances):
                if 2 * distance <= groups:
                    mirrored = port + len(distances) - 1 - place
                    starts = np.arange(groups if 2 * distance < groups else distance)
                    ends = (starts + distance) % groups
                    near, far = (end // self.global_links for end in (port + place, mirrored))
                    yield np.stack([firsts[starts] + near, firsts[ends] + far], axis=1)
            port += len(distances)

    def _distances(self, groups: int, port: int) -> list[int]:
        """Return how far the next ports of every group reach, given the first free one."""
        free = self.group_switches * self.global_links - port
        half = min(free, groups - 1) // 2
        middle = [groups // 2] if groups % 2 == 0 and free > 2 * half else []
        return [*range(1, half + 1), *middle, *range(groups - half, groups)]
