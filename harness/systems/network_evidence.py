"""Sizes, costs and latencies of networks, as records: arXiv 2505.09343, tables 3 and 5."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, model_validator

from harness.config.base import Spec, validate
from harness.errors import UserError, closest
from harness.records.record import Record, record
from harness.systems.dragonfly import Dragonfly
from harness.systems.network_cost import (
    Item,
    Observation,
    Prices,
    Printed,
    centre,
    cost,
    cost_range,
    observation,
    price_range,
)
from harness.systems.network_graphs import graph_records
from harness.systems.network_latency import DISTANCES, Latency
from harness.systems.slim_fly import SlimFly
from harness.systems.topologies import (
    Counts,
    ThreeLayerFatTree,
    Topology,
    TwoLayerFatTree,
)
from harness.systems.topology_measures import diameter, flow_between_halves, spectral_bisection

Family = Annotated[
    TwoLayerFatTree | ThreeLayerFatTree | SlimFly | Dragonfly, Field(discriminator="kind")
]
Families = dict[str, Family]
WHERE = "network_topologies"


class PriceModels(Spec):
    """Which items have a price, by the name of the model, and the model that costs are taken by."""

    models: dict[str, tuple[Item, ...]] = Field(min_length=1)
    chosen: str

    @model_validator(mode="after")
    def _known(self) -> "PriceModels":
        if self.chosen not in self.models:
            raise ValueError(f"chosen: found '{self.chosen}'{closest(self.chosen, self.models)}")
        return self


class Comparisons(Spec):
    """Pairs of networks: the first relative to the second."""

    cost: list[tuple[str, str]]
    latency: list[tuple[str, str]]


def network_topologies(
    topologies: Mapping[str, Any],
    formula_only: Sequence[str],
    printed: Mapping[str, Any],
    prices: Mapping[str, Any],
    latencies: Mapping[str, Any],
    node_latencies: Mapping[str, Any],
    comparisons: Mapping[str, Any],
    drawn: Mapping[str, Any],
) -> list[Record]:
    """Return what networks consist of, cost, and take for a small message.

    Args:
        topologies: By name, a family of networks with its numbers.
        formula_only: Names of those that are not built as a graph.
        printed: By name, a ``Printed`` column; the prices are fitted to all of them.
        prices: A ``PriceModels``.
        latencies: By the name of the links' kind, a ``Latency``.
        node_latencies: By the name of the links' kind, microseconds within a node.
        comparisons: A ``Comparisons``.
        drawn: By name, a family with small numbers, whose graph is recorded link by link.

    Returns:
        ``topology/endpoints``, ``switches`` and ``links`` by ``method``; ``topology/diameter``;
        ``topology/bisection``, over half of the endpoints: what fits between their first and second
        half, and a bound from below on any two halves; ``network/cost`` and
        ``network/cost_per_endpoint`` by ``method``, where the prices fit all printed costs, or all
        but the network's own; ``network/cost_at_size`` of smaller networks; ``network/fits`` and
        ``network/price`` by ``prices``, at both ends of what is possible; ``network/latency`` over
        the longest path of a topology, ``network/latency_at_distance`` as printed and as
        extrapolated, and ``network/latency_per_switch``, in microseconds; relative differences; and
        the ``graph_records`` of what is drawn.

    Raises:
        UserError: If an argument is not as described, or a network cannot be built.
    """
    families: Families = validate(dict[str, Family], topologies, f"{WHERE}: topologies")
    rows: dict[str, Printed] = validate(dict[str, Printed], printed, f"{WHERE}: printed")
    models: PriceModels = validate(PriceModels, prices, f"{WHERE}: prices")
    kinds: dict[str, Latency] = validate(dict[str, Latency], latencies, f"{WHERE}: latencies")
    within: dict[str, float] = validate(
        dict[str, PositiveFloat], node_latencies, f"{WHERE}: node_latencies"
    )
    pairs: Comparisons = validate(Comparisons, comparisons, f"{WHERE}: comparisons")
    formulas: list[str] = validate(list[str], formula_only, f"{WHERE}: formula_only")
    compared = [name for pair in (*pairs.cost, *pairs.latency) for name in pair]
    small: Families = validate(dict[str, Family], drawn, f"{WHERE}: drawn")
    for name in (*formulas, *rows, *compared):
        if name not in families:
            raise UserError(f"{WHERE}: found topology '{name}'{closest(name, families)}")
    built = {name: family for name, family in families.items() if name not in formulas}
    graphs = {
        name: _graph(f"topologies.{name}", family, ", or the name in formula_only")
        for name, family in built.items()
    }
    diameters = {name: diameter(graph) for name, graph in graphs.items()}
    return [
        *_sizes(families, graphs, rows),
        *_distances(families, graphs, diameters),
        *_costs(families, rows, models, pairs.cost),
        *_latencies(kinds, diameters, pairs.latency),
        *_latencies_by_distance(kinds, within),
        *_drawn(small),
    ]


def _graph(key: str, family: Family, otherwise: str = "") -> Topology:
    try:
        return family.build()
    except UserError as error:
        raise UserError(f"{WHERE}: {key}.{error}{otherwise}") from None


def _drawn(families: Families) -> Iterator[Record]:
    """Yield the graphs; nodes are of interest where they have ports in several planes."""
    for name, family in families.items():
        nodes = None
        if isinstance(family, TwoLayerFatTree) and family.planes > 1:
            nodes = family.endpoint_nodes
        yield from graph_records(name, _graph(f"drawn.{name}", family), nodes)


def _sizes(
    families: Families, graphs: dict[str, Topology], rows: dict[str, Printed]
) -> Iterator[Record]:
    sources: dict[str, Mapping[str, Any]] = {
        "closed_form": {name: family.counts for name, family in families.items()},
        "counted": {name: graph.counts for name, graph in graphs.items()},
        "printed": rows,
    }
    for method, sizes in sources.items():
        for name, counts in sizes.items():
            for what in ("endpoints", "switches", "links"):
                value = getattr(counts, what)
                yield record(f"topology/{what}", value, what, topology=name, method=method)


def _distances(
    families: Families, graphs: dict[str, Topology], diameters: dict[str, int]
) -> Iterator[Record]:
    """Yield diameters, and what fits between halves over what half of the endpoints can send."""
    for name, graph in graphs.items():
        family, half = families[name], graph.counts.endpoints / 2
        yield record("topology/diameter", diameters[name], "links", topology=name)
        if not isinstance(family, TwoLayerFatTree) or family.planes == 1:
            share = flow_between_halves(graph) / half
            yield record("topology/bisection", share, "1", topology=name, measure="largest_flow")
        if isinstance(family, SlimFly | Dragonfly):
            share = spectral_bisection(graph) / half
            yield record("topology/bisection", share, "1", topology=name, measure="spectral_bound")


def _costs(
    families: Families, rows: dict[str, Printed], models: PriceModels, pairs: list[tuple[str, str]]
) -> Iterator[Record]:
    seen = {name: observation(families[name].counts, row) for name, row in rows.items()}
    for model, items in models.models.items():
        yield from _prices(model, items, seen)
    items = models.models[models.chosen]
    vertices = price_range(seen.values(), items)
    if vertices is None:
        raise UserError(f"{WHERE}: prices.chosen: found '{models.chosen}', which no "
                        "prices fit, expected a model with more items")  # fmt: skip
    fitted = centre(vertices)
    for name, family in families.items():
        yield from _cost(name, family.counts, cost(family.counts, fitted), "fitted")
        for counts in family.sizes():
            value = cost(counts, fitted) / 1e6
            yield record("network/cost_at_size", value, "M$",
                          topology=name, endpoints=counts.endpoints)  # fmt: skip
    for name, row in rows.items():
        yield record("network/cost", float(row.cost), "M$", topology=name, method="printed")
        each = float(row.cost_per_endpoint)
        yield record("network/cost_per_endpoint", each, "k$", topology=name, method="printed")
        others = [one for other, one in seen.items() if other != name]
        ends = cost_range(families[name].counts, others, items)
        assert ends is not None, "a part of possible constraints"
        for end, value in zip(("least", "largest"), ends, strict=True):
            yield from _cost(name, families[name].counts, value, f"{end}_by_the_others")
    for first, second in pairs:
        yield from _relative(first, second, families, rows, fitted)


def _prices(model: str, items: tuple[Item, ...], seen: dict[str, Observation]) -> Iterator[Record]:
    vertices = price_range(seen.values(), items)
    yield record("network/fits", float(vertices is not None), "1", prices=model)
    for item, points in (vertices or {}).items():
        for end, point in zip(("least", "largest"), points, strict=True):
            yield record("network/price", point[item], "$", prices=model, item=item, end=end)


def _cost(name: str, counts: Counts, value: float, method: str) -> Iterator[Record]:
    labels = {"topology": name, "method": method}
    yield record("network/cost", value / 1e6, "M$", **labels)
    yield record("network/cost_per_endpoint", value / counts.endpoints / 1e3, "k$", **labels)


def _relative(
    first: str, second: str, families: Families, rows: dict[str, Printed], fitted: Prices
) -> Iterator[Record]:
    """Yield how much less or more per endpoint the first network has and costs."""
    counts = [families[name].counts for name in (first, second)]
    values = [
        ("switches", "closed_form", [one.switches / one.endpoints for one in counts]),
        ("links", "closed_form", [one.links / one.endpoints for one in counts]),
        ("cost", "fitted", [cost(one, fitted) / one.endpoints for one in counts]),
    ]
    if first in rows and second in rows:
        each = [float(rows[name].cost_per_endpoint) for name in (first, second)]
        values.append(("cost", "printed", each))
    for quantity, method, (one, other) in values:
        yield record("network/relative_difference", one / other - 1, "1", topology=first,
                      over=second, quantity=f"{quantity}_per_endpoint", method=method)  # fmt: skip


def _latencies(
    kinds: dict[str, Latency], diameters: dict[str, int], pairs: list[tuple[str, str]]
) -> Iterator[Record]:
    """Yield the latency over the longest shortest path of every graph."""
    for kind, latency in kinds.items():
        for name, links in diameters.items():
            value = latency.through(links)
            yield record("network/latency", value, "us", network=kind, topology=name, links=links)
        for first, second in pairs:
            if first in diameters and second in diameters:
                one, other = (latency.through(diameters[name]) for name in (first, second))
                yield record("network/latency_difference", one / other - 1, "1",
                              network=kind, topology=first, over=second)  # fmt: skip


def _latencies_by_distance(kinds: dict[str, Latency], within: dict[str, float]) -> Iterator[Record]:
    """Yield the printed latencies, and what they come to for one switch and for longer paths."""
    metric = "network/latency_at_distance"
    for kind, value in within.items():
        yield record(metric, value, "us", network=kind, distance="same_node", method="printed")
    for kind, latency in kinds.items():
        yield record("network/latency_per_switch", latency.per_switch, "us", network=kind)
        printed = latency.model_dump()
        for distance, links in DISTANCES.items():
            value = printed.get(distance, latency.through(links))
            yield record(metric, value, "us", network=kind, distance=distance, switches=links + 1,
                         method="printed" if distance in printed else "extrapolated")  # fmt: skip
