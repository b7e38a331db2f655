"""Networks as graphs against networkx, published sizes, and the laws that define them."""

from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.base import validate
from harness.errors import UserError
from harness.systems.dragonfly import Dragonfly
from harness.systems.network_evidence import Family
from harness.systems.slim_fly import SlimFly, galois_field, generators, prime_of
from harness.systems.topologies import (
    Counts,
    ThreeLayerFatTree,
    Topology,
    TwoLayerFatTree,
    leaf_spine,
)
from harness.systems.topology_measures import diameter, flow_between_halves, spectral_bisection

PRIME_POWERS = (3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19)
BIG = {"radix": 64, "group_switches": 32, "endpoints_per_switch": 16, "global_links": 16}

radices = st.integers(1, 8).map(lambda half: 2 * half)
two_layers = st.builds(TwoLayerFatTree, radix=radices, planes=st.integers(1, 4))
three_layers = st.builds(ThreeLayerFatTree, radix=radices.filter(lambda radix: radix <= 10))
slim_flies = st.builds(
    SlimFly,
    radix=st.just(64),
    q=st.sampled_from(PRIME_POWERS),
    endpoints_per_switch=st.integers(1, 8),
)


@st.composite
def dragonflies(draw):
    size, ports = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    return Dragonfly(
        radix=64,
        group_switches=size,
        endpoints_per_switch=draw(st.integers(1, 3)),
        global_links=ports,
        groups=draw(st.integers(1, size * ports + 1)),
    )


families = st.one_of(two_layers, three_layers, slim_flies, dragonflies())


def as_networkx(topology: Topology) -> nx.MultiGraph:
    graph = nx.MultiGraph()
    graph.add_nodes_from(range(topology.switches))
    graph.add_edges_from(topology.links.tolist())
    return graph


@given(family=families)
@settings(deadline=None)
def test_graphs_have_what_the_closed_form_says_and_no_more_ports_than_switches_have(family):
    topology = family.build()
    assert topology.counts == family.counts
    assert topology.ports.max() <= family.radix
    first, second = topology.links.T
    assert (first != second).all()
    assert (topology.endpoint_switches < topology.switches).all()


@given(family=families)
@settings(deadline=None)
def test_endpoints_are_in_the_lowest_layer_and_links_go_up_by_one(family):
    topology = family.build()
    assert (topology.layers[topology.endpoint_switches] == 0).all()
    rises = np.diff(topology.layers[topology.links], axis=1)
    layers = {TwoLayerFatTree: 2, ThreeLayerFatTree: 3}.get(type(family), 1)
    assert set(topology.layers) == set(range(layers))
    assert (rises == min(layers - 1, 1)).all()


@given(family=two_layers)
def test_planes_are_what_no_link_joins(family):
    topology = family.build()
    planes = [set(np.flatnonzero(topology.groups == plane)) for plane in range(family.planes)]
    assert list(nx.connected_components(as_networkx(topology))) == planes


@pytest.mark.parametrize(("planes", "node_ports"), [(1, 1), (8, 8), (4, 8), (2, 4)])
def test_a_node_has_its_ports_in_all_planes_alike(planes, node_ports):
    family = TwoLayerFatTree(radix=8, planes=planes, node_ports=node_ports)
    topology, nodes = family.build(), family.endpoint_nodes
    assert len(nodes) == family.counts.endpoints
    for node in range(family.counts.endpoints // node_ports):
        ports = topology.groups[topology.endpoint_switches[nodes == node]]
        assert (np.bincount(ports, minlength=planes) == node_ports // planes).all()


@pytest.mark.parametrize("radix", [2, 4, 6])
def test_pods_are_what_the_core_joins_and_core_groups_have_the_same_neighbours(radix):
    topology = ThreeLayerFatTree(radix=radix).build()
    graph, core = as_networkx(topology), topology.layers == 2
    neighbours = {switch: frozenset(graph[switch]) for switch in np.flatnonzero(core).tolist()}
    for group in range(radix, radix + radix // 2):
        assert len({neighbours[one] for one in np.flatnonzero(topology.groups == group)}) == 1
    assert len(set(neighbours.values())) == radix // 2
    graph.remove_nodes_from(neighbours)
    pods = [set(np.flatnonzero(topology.groups == pod)) for pod in range(radix)]
    assert list(nx.connected_components(graph)) == pods


@pytest.mark.parametrize("q", PRIME_POWERS)
def test_blocks_of_a_slim_fly_are_linked_once_per_switch_across_its_halves_only(q):
    topology = SlimFly(radix=64, q=q, endpoints_per_switch=1).build()
    between = np.sort(topology.groups[topology.links], axis=1)
    different, times = np.unique(
        between[between[:, 0] != between[:, 1]], axis=0, return_counts=True
    )
    assert {tuple(pair) for pair in different.tolist()} == {
        (x, q + m) for x in range(q) for m in range(q)
    }
    assert (times == q).all()


TABLE_3 = {
    "ft2": (TwoLayerFatTree(radix=64), (2048, 96, 2048)),
    "mpft": (TwoLayerFatTree(radix=64, planes=8), (16384, 768, 16384)),
    "ft3": (ThreeLayerFatTree(radix=64), (65536, 5120, 131072)),
    "dragonfly": (Dragonfly(**BIG, groups=511), (261632, 16352, 384272)),
    "canonical": (Dragonfly(**BIG), (262656, 16416, 385776)),
    "q27": (SlimFly(radix=64, q=27, endpoints_per_switch=23), (33534, 1458, 29889)),
    "q29": (SlimFly(radix=64, q=29, endpoints_per_switch=21), (35322, 1682, 36163)),
}


@pytest.mark.parametrize("name", TABLE_3)
def test_graphs_of_published_sizes(name):
    family, expected = TABLE_3[name]
    counts = family.build().counts
    assert (counts.endpoints, counts.switches, counts.links) == expected


def test_the_printed_slim_fly_is_a_formula_without_a_graph():
    family = SlimFly(radix=64, q=28, endpoints_per_switch=21)
    assert family.counts == Counts(endpoints=32928, switches=1568, links=32928)
    with pytest.raises(UserError, match="28, which is no prime power, expected for example 27 or"):
        family.build()


def test_a_part_of_a_fat_tree_has_as_many_switches_and_links_per_endpoint_as_the_whole():
    assert ThreeLayerFatTree(radix=64).with_pods(16) == Counts(16384, 1280, 32768)
    assert TwoLayerFatTree(radix=64, planes=8).with_leaves(8) == Counts(2048, 96, 2048)


@given(radix=radices, planes=st.integers(1, 8))
def test_a_third_layer_takes_two_more_switches_per_radix_endpoints_and_twice_the_links(
    radix, planes
):
    two, three = TwoLayerFatTree(radix=radix, planes=planes).counts, ThreeLayerFatTree(radix=radix)
    assert two.switches * radix == 3 * two.endpoints
    assert three.counts.switches * radix == 5 * three.counts.endpoints
    assert (two.links, three.counts.links) == (two.endpoints, 2 * three.counts.endpoints)


@given(family=st.one_of(two_layers, three_layers, dragonflies()))
def test_sizes_grow_up_to_the_network_itself(family):
    sizes = [counts.endpoints for counts in family.sizes()]
    assert sizes == sorted(sizes)
    assert sizes[-1] == family.counts.endpoints


def test_smaller_slim_flies_exist_and_fill_half_of_their_switches():
    family = SlimFly(radix=64, q=28, endpoints_per_switch=21)
    *smaller, last = family.sizes()
    assert last == family.counts
    orders = [round((counts.switches / 2) ** 0.5) for counts in smaller]
    assert orders == [16, 17, 19, 23, 25, 27]
    for counts in smaller:
        ports = 2 * counts.links + counts.endpoints
        assert 32 * counts.switches <= ports <= 64 * counts.switches


@given(family=families)
@settings(deadline=None)
def test_the_diameter_is_that_of_networkx_between_switches_with_endpoints(family):
    topology = family.build()
    lengths = dict(nx.all_pairs_shortest_path_length(as_networkx(topology)))
    leaves = set(topology.endpoint_switches.tolist())
    longest = max(far for one in leaves for other, far in lengths[one].items() if other in leaves)
    assert diameter(topology) == longest
    most = {TwoLayerFatTree: 2, ThreeLayerFatTree: 4, SlimFly: 2, Dragonfly: 3}[type(family)]
    assert longest <= most


@given(radix=radices)
def test_fat_trees_use_all_ports_and_have_full_bisection_by_the_largest_flow(radix):
    for family in (TwoLayerFatTree(radix=radix), ThreeLayerFatTree(radix=radix)):
        topology = family.build()
        assert (topology.ports == radix).all()
        assert flow_between_halves(topology) == topology.counts.endpoints // 2


@pytest.mark.parametrize(("leaves", "spines", "endpoints"), [(4, 2, 3), (6, 1, 2), (2, 5, 4)])
def test_the_largest_flow_is_that_of_networkx(leaves, spines, endpoints):
    topology = leaf_spine(leaves, spines, endpoints)
    graph = nx.DiGraph()
    for one, other in topology.links.tolist():
        graph.add_edge(one, other, capacity=1)
        graph.add_edge(other, one, capacity=1)
    half = len(topology.endpoint_switches) // 2
    for place, switch in enumerate(topology.endpoint_switches.tolist()):
        ends = ("source", switch) if place < half else (switch, "sink")
        before = graph.edges[ends]["capacity"] if graph.has_edge(*ends) else 0
        graph.add_edge(*ends, capacity=before + 1)
    assert flow_between_halves(topology) == nx.maximum_flow_value(graph, "source", "sink")


@pytest.mark.parametrize(
    "family",
    [
        SlimFly(radix=64, q=3, endpoints_per_switch=1),
        Dragonfly(radix=64, group_switches=3, endpoints_per_switch=1, global_links=1),
        Dragonfly(radix=64, group_switches=2, endpoints_per_switch=1, global_links=2, groups=4),
    ],
)
def test_the_spectral_bound_is_below_every_bisection(family):
    topology = family.build()
    nodes = range(topology.switches)
    adjacency = topology.adjacency.toarray()
    halves = np.array([np.isin(nodes, half) for half in combinations(nodes, len(nodes) // 2)])
    across = np.einsum("hi,ij,hj->h", halves, adjacency, ~halves, optimize=True)
    bound = spectral_bisection(topology)
    assert 0 < bound <= across.min() * (1 + 1e-9)


@pytest.mark.parametrize("q", [4, 7, 8, 9, 16, 25, 27])
def test_tables_are_those_of_a_field(q):
    field = galois_field(q)
    for table, neutral, members in ((field.sums, 0, range(q)), (field.products, 1, range(1, q))):
        group = table[np.ix_(members, members)]
        # An abelian group: closed, associative, with a neutral element and inverses.
        assert (np.sort(group, axis=1) == np.array(members)).all()
        assert (group == group.T).all()
        assert (table[neutral] == np.arange(q)).all()
        assert (table[table] == table[:, table]).all()
    distributed = field.sums[field.products[:, :, None], field.products[:, None, :]]
    assert (field.products[:, field.sums] == distributed).all()
    assert sorted(field.powers) == list(range(1, q))


@pytest.mark.parametrize("q", PRIME_POWERS)
def test_slim_fly_generators_are_their_own_negatives_and_cover_all_elements(q):
    field = galois_field(q)
    first, second = generators(q, field.powers)
    negative = np.argmin(field.sums, axis=1)
    for members in (first, second):
        assert (
            len(set(members))
            == len(members)
            == SlimFly(radix=64, q=q, endpoints_per_switch=1).degree - q
        )
        assert set(negative[members]) == set(members)
    assert set(first) | set(second) == set(range(1, q))


@pytest.mark.parametrize("q", PRIME_POWERS)
def test_slim_flies_are_regular(q):
    family = SlimFly(radix=64, q=q, endpoints_per_switch=1)
    degrees = {degree for _, degree in nx.Graph(as_networkx(family.build())).degree}
    assert degrees == {family.degree}


def test_the_slim_fly_of_five_is_the_hoffman_singleton_graph():
    # The only graph with these parameters: degree 7 and diameter 2 on 50 vertices.
    adjacency = SlimFly(radix=64, q=5, endpoints_per_switch=1).build().adjacency.toarray()
    moore = adjacency @ adjacency + adjacency - 6 * np.eye(50)
    assert (moore == 1).all()
    published = nx.to_numpy_array(nx.hoffman_singleton_graph())
    np.testing.assert_allclose(
        np.linalg.eigvalsh(adjacency), np.linalg.eigvalsh(published), atol=1e-9
    )


@given(family=dragonflies())
@settings(deadline=None)
def test_any_two_groups_of_a_dragonfly_are_linked_about_equally_often(family):
    topology = family.build()
    between = topology.links[topology.local_links :] // family.group_switches
    assert (between[:, 0] != between[:, 1]).all()
    pairs = [tuple(sorted(pair)) for pair in between.tolist()]
    times = [pairs.count(pair) for pair in combinations(range(family.group_count), 2)]
    if times:
        assert 1 <= min(times) <= max(times) <= min(times) + 1
    if family.group_count == family.canonical_groups:
        assert set(times) <= {1}
    inside = topology.links[: topology.local_links] // family.group_switches
    assert (inside[:, 0] == inside[:, 1]).all()
    assert (topology.groups == np.arange(topology.switches) // family.group_switches).all()


def test_primes_and_their_powers():
    found = [n for n in range(2, 33) if prime_of(n)]
    assert found == [2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29, 31, 32]
    assert [prime_of(n) for n in (8, 27, 25, 7, 28)] == [2, 3, 5, 7, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "two_layer_fat_tree", "radix": 63}, "found 63, expected an even .* such as 64"),
        ({"kind": "three_layer_fat_tree", "radix": 5}, "found 5, expected an even .* such as 6"),
        ({"kind": "two_layer_fat_tree", "radix": 64, "planes": 9}, "found 9, .* at most .* 8"),
        ({"kind": "slim_fly", "radix": 64, "q": 30, "endpoints_per_switch": 1}, "such as 29 or 31"),
        ({"kind": "slim_fly", "radix": 64, "q": 29, "endpoints_per_switch": 22}, "at least 65"),
        ({"kind": "dragonfly", **BIG, "groups": 514}, "groups: found 514, expected at most 513"),
        ({"kind": "dragonfly", **BIG, "radix": 62}, "radix: found 62, expected at least 63"),
        ({"kind": "torus", "radix": 4}, "torus"),
    ],
)  # fmt: skip
def test_impossible_networks_are_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        validate(Family, arguments, "here: topologies")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("q", "nearest"), [(6, "5 or 7"), (12, "11 or 13"), (28, "27 or 29")])
def test_what_is_no_prime_power_is_answered_with_the_nearest(q, nearest):
    with pytest.raises(UserError, match=f"found {q}, .* for example {nearest}"):
        galois_field(q)
