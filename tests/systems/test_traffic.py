"""Fair rates against linear programs and their certificate; routing against the laws of flows.

Shape suffixes: L directed links, F flows.
"""

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linprog

from harness.errors import UserError
from harness.systems.dragonfly import Dragonfly
from harness.systems.network_paths import NO_LINK, Network
from harness.systems.network_routing import flows_between, link_loads, usage
from harness.systems.slim_fly import SlimFly
from harness.systems.topologies import ThreeLayerFatTree, TwoLayerFatTree, leaf_spine
from harness.systems.traffic import all_to_all, equal_flows_time, finish_times, max_min_rates
from harness.systems.traffic_scenarios import all_to_all_bandwidth, incast_rate

ROUTINGS = ("static", "ecmp", "sprayed", "adaptive")
NETWORKS = {
    "two layers": Network(TwoLayerFatTree(radix=6).build()),
    "three layers": Network(ThreeLayerFatTree(radix=4).build()),
    "slim fly": Network(SlimFly(radix=64, q=4, endpoints_per_switch=2).build()),
    "dragonfly": Network(
        Dragonfly(radix=8, group_switches=4, endpoints_per_switch=2, global_links=2).build()
    ),
    # Two links between some switches.
    "few groups": Network(
        Dragonfly(
            radix=8, group_switches=2, endpoints_per_switch=2, global_links=2, groups=2
        ).build()
    ),
    "oversubscribed": Network(leaf_spine(leaves=3, spines=2, endpoints_per_leaf=5)),
}


@st.composite
def flows_on(draw, name: str):
    network = NETWORKS[name]
    endpoint = st.integers(0, network.endpoints - 1)
    pair = st.tuples(endpoint, endpoint).filter(lambda ends: ends[0] != ends[1])
    return flows_between(np.array(draw(st.lists(pair, min_size=1, max_size=12))))


@st.composite
def shared_links(draw):
    """Usage of few links by few flows, with shares and unequal capacities."""
    links, flows = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    share = st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0])
    dense = np.array(draw(st.lists(share, min_size=links * flows, max_size=links * flows)))
    usage_LF = dense.reshape(links, flows)
    usage_LF[0, usage_LF.sum(axis=0) == 0] = 1.0
    capacity = st.lists(st.sampled_from([1.0, 1.5, 2.0, 5.0]), min_size=links, max_size=links)
    return sparse.csr_array(usage_LF), np.array(draw(capacity))


def lexicographic_rates(usage_LF: np.ndarray, capacity_L: np.ndarray) -> np.ndarray:
    """Return max-min fair rates by linear programs: raise the least one, then the next..."""
    flows = usage_LF.shape[1]
    fixed: dict[int, float] = {}
    while len(fixed) < flows:
        # Variables: all rates, and the level that the free ones reach at least.
        level = np.zeros(flows + 1)
        level[-1] = -1
        below = [[*(-1.0 * (np.arange(flows) == one)), 1.0] for one in range(flows)]
        rows = np.vstack([np.c_[usage_LF, np.zeros(len(usage_LF))],
                          [row for one, row in enumerate(below) if one not in fixed]])  # fmt: skip
        limits = np.r_[capacity_L, np.zeros(flows - len(fixed))]
        bounds = [(fixed.get(one, 0.0), fixed.get(one)) for one in range(flows)] + [(0, None)]
        reached = linprog(level, A_ub=rows, b_ub=limits, bounds=bounds).x[-1]
        # Which flows cannot be above this level while no other free one is below it.
        at_least = [(fixed.get(one, reached - 1e-9), fixed.get(one)) for one in range(flows)]
        for one in [one for one in range(flows) if one not in fixed]:
            goal = -1.0 * (np.arange(flows) == one)
            most = linprog(goal, A_ub=usage_LF, b_ub=capacity_L, bounds=at_least).x[one]
            if most <= reached * (1 + 1e-6):
                fixed[one] = reached
    return np.array([fixed[one] for one in range(flows)])


@given(shared=shared_links())
@settings(deadline=None, max_examples=40)
def test_rates_are_those_of_successive_linear_programs(shared):
    usage_LF, capacity_L = shared
    expected = lexicographic_rates(usage_LF.toarray(), capacity_L)
    np.testing.assert_allclose(max_min_rates(usage_LF, capacity_L), expected, rtol=1e-5)


def assert_max_min_fair(usage_LF, capacity_L, rates_F):
    """Check the certificate: every flow has a full link on which no other flow is faster."""
    dense, load_L = usage_LF.toarray(), usage_LF @ rates_F
    assert (load_L <= capacity_L * (1 + 1e-8)).all()
    full_L = load_L >= capacity_L * (1 - 1e-8)
    fastest_L = np.where(dense > 0, rates_F, 0).max(axis=1)
    bottleneck_LF = (dense > 0) & full_L[:, None] & (rates_F >= fastest_L[:, None] * (1 - 1e-8))
    assert bottleneck_LF.any(axis=0).all()


@given(shared=shared_links())
@settings(deadline=None)
def test_every_flow_has_a_bottleneck_and_no_link_is_above_its_capacity(shared):
    assert_max_min_fair(*shared, max_min_rates(*shared))


@given(name=st.sampled_from(list(NETWORKS)), routing=st.sampled_from(ROUTINGS), data=st.data())
@settings(deadline=None)
def test_rates_on_networks_have_the_certificate(name, routing, data):
    network, flows = NETWORKS[name], data.draw(flows_on(name))
    usage_LF = usage(network, flows, routing, data.draw(st.integers(0, 9)))
    capacity_L = np.ones(network.links)
    assert_max_min_fair(usage_LF, capacity_L, max_min_rates(usage_LF, capacity_L))


@given(name=st.sampled_from(list(NETWORKS)), routing=st.sampled_from(ROUTINGS), data=st.data())
@settings(deadline=None)
def test_what_enters_a_switch_leaves_it(name, routing, data):
    network, flows = NETWORKS[name], data.draw(flows_on(name))
    usage_LF = usage(network, flows, routing, data.draw(st.integers(0, 9))).toarray()
    topology, each = network.topology, np.arange(len(flows))
    balance_NF = np.zeros((topology.switches, len(flows)))
    ends = np.concatenate([topology.links, topology.links[:, ::-1]], axis=1).reshape(-1, 2)
    np.subtract.at(balance_NF, ends[:, 0], usage_LF[2 * network.endpoints :])
    np.add.at(balance_NF, ends[:, 1], usage_LF[2 * network.endpoints :])
    np.add.at(balance_NF, topology.endpoint_switches, usage_LF[: network.endpoints])
    received = usage_LF[network.endpoints : 2 * network.endpoints]
    np.subtract.at(balance_NF, topology.endpoint_switches, received)
    np.testing.assert_allclose(balance_NF, 0, atol=1e-12)
    assert (usage_LF[flows.sources, each] == 1).all()
    assert (received[flows.destinations, each] == 1).all()


@given(name=st.sampled_from(list(NETWORKS)), routing=st.sampled_from(ROUTINGS), data=st.data())
@settings(deadline=None)
def test_paths_are_as_short_as_networkx_finds_them(name, routing, data):
    network, flows = NETWORKS[name], data.draw(flows_on(name))
    used_LF = usage(network, flows, routing).toarray()[2 * network.endpoints :]
    topology, graph = network.topology, nx.Graph()
    # A minimal route of a dragonfly has the fewest links between groups, then the fewest in them.
    between = np.arange(len(topology.links)) >= topology.local_links
    lengths = np.where(between & (topology.local_links > 0), 100, 1)
    for (one, other), length in zip(topology.links.tolist(), lengths.tolist(), strict=True):
        graph.add_edge(one, other, length=length)
    ends = topology.endpoint_switches[np.stack([flows.sources, flows.destinations])]
    shortest = [nx.shortest_path_length(graph, *pair, weight="length") for pair in ends.T.tolist()]
    np.testing.assert_allclose(np.repeat(lengths, 2) @ used_LF, shortest)


@given(name=st.sampled_from(["two layers", "three layers", "slim fly"]), data=st.data())
@settings(deadline=None)
def test_spraying_gives_every_shortest_path_of_networkx_the_same_share(name, data):
    network, flows = NETWORKS[name], data.draw(flows_on(name))
    used_LF = usage(network, flows, "sprayed").toarray()[2 * network.endpoints :]
    graph = nx.Graph(network.topology.links.tolist())
    links = {tuple(link): 2 * place for place, link in enumerate(network.topology.links.tolist())}
    links |= {(b, a): place + 1 for (a, b), place in links.items()}
    switches = network.topology.endpoint_switches
    for flow, ends in enumerate(zip(flows.sources, flows.destinations, strict=True)):
        first, last = (int(switches[end]) for end in ends)
        expected = np.zeros(len(used_LF))
        paths = list(nx.all_shortest_paths(graph, first, last))
        for path in paths:
            for step in pairwise(path):
                expected[links[step]] += 1 / len(paths)
        np.testing.assert_allclose(used_LF[:, flow], expected, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("routing", ["static", "ecmp", "sprayed"])
def test_loads_added_up_between_switches_are_the_sums_over_flows(name, routing):
    network = NETWORKS[name]
    demand_EE = np.random.default_rng(0).integers(0, 3, (network.endpoints,) * 2).astype(float)
    np.fill_diagonal(demand_EE, 0)
    pairs = np.stack(np.nonzero(demand_EE), axis=1)
    one_by_one = usage(network, flows_between(pairs), routing, 5) @ demand_EE[tuple(pairs.T)]
    np.testing.assert_allclose(link_loads(network, demand_EE, routing, 5), one_by_one, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("routing", ROUTINGS)
def test_an_all_to_all_takes_as_long_as_simulating_its_flows_one_by_one(name, routing):
    network = NETWORKS[name]
    pairs = np.stack(np.nonzero(all_to_all(network.endpoints)), axis=1)
    capacity_L = np.random.default_rng(1).choice([1.0, 2.0], network.links)
    usage_LF = usage(network, flows_between(pairs), routing, 3)
    times_F = finish_times(usage_LF, capacity_L, np.ones(len(pairs)))
    assert times_F.max() == pytest.approx(equal_flows_time(usage_LF.sum(axis=1), capacity_L))
    if routing != "adaptive":
        load_L = link_loads(network, all_to_all(network.endpoints), routing, 3)
        assert times_F.max() == pytest.approx(equal_flows_time(load_L, capacity_L))


@given(shared=shared_links(), data=st.data())
@settings(deadline=None)
def test_all_bytes_arrive_and_links_are_never_faster_than_they_are(shared, data):
    usage_LF, capacity_L = shared
    flows = usage_LF.shape[1]
    sizes_F = np.array(data.draw(st.lists(st.floats(0.1, 9), min_size=flows, max_size=flows)))
    times_F = finish_times(usage_LF, capacity_L, sizes_F)
    assert (usage_LF @ sizes_F <= capacity_L * times_F.max() * (1 + 1e-6)).all()
    # No flow is faster than alone on its links.
    alone = (usage_LF.toarray() / capacity_L[:, None]).max(axis=0) * sizes_F
    assert (times_F >= alone * (1 - 1e-6)).all()


def test_a_flow_takes_over_what_a_finished_one_leaves():
    # Two flows share a link of 2; the first, half as large, also limits a third on another link.
    usage_LF = sparse.csr_array(np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]))
    times = finish_times(usage_LF, np.array([2.0, 4.0]), np.array([1.0, 2.0, 6.0]))
    # Rates 1, 1, 3; after one second the second has 1 left at rate 2, the third 3 at rate 4.
    np.testing.assert_allclose(times, [1.0, 1.5, 1.75])


def test_a_flow_without_links_is_never_limited():
    usage_LF = sparse.csr_array(np.array([[1.0, 0.0]]))
    np.testing.assert_array_equal(max_min_rates(usage_LF, np.ones(1)), [1.0, np.inf])


@pytest.mark.parametrize("name", ["two layers", "three layers"])
def test_static_routing_of_a_fat_tree_has_no_conflict_in_any_shift(name):
    network = NETWORKS[name]
    ends = np.arange(network.endpoints)
    for shift in range(1, network.endpoints):
        pairs = np.stack([ends, (ends + shift) % network.endpoints], axis=1)
        assert usage(network, flows_between(pairs), "static").sum(axis=1).max() == 1


def test_hashes_depend_on_seed_queue_pair_and_both_ends_and_reach_all_paths():
    network = Network(leaf_spine(leaves=2, spines=8, endpoints_per_leaf=64))
    flows = flows_between(np.stack([np.arange(64), 64 + np.arange(64)], axis=1), queue_pairs=2)
    links = [network.single_paths(flows, "ecmp", seed).links_PH[:, 0] for seed in (0, 0, 1)]
    assert (links[0] == links[1]).all()
    assert (links[0] != links[2]).any()
    assert (links[0][::2] != links[0][1::2]).any()
    times = np.bincount(links[0])[np.unique(links[0])]
    # 128 balls in 8 bins: every bin within four standard deviations of 16.
    assert len(times) == 8
    assert (abs(times - 16) < 4 * 16**0.5).all()


@given(name=st.sampled_from(["two layers", "slim fly", "oversubscribed"]), data=st.data())
@settings(deadline=None, max_examples=25)
def test_adaptive_routing_is_near_the_best_split_and_never_above_the_worst_path(name, data):
    network, flows = NETWORKS[name], data.draw(flows_on(name))
    switches = network.topology.endpoint_switches
    paths = network.all_paths(switches[flows.sources], switches[flows.destinations])
    if paths.links_PH.shape[1] == 0:
        return
    # The best split, a linear program: shares of paths, and the load of the busiest link.
    on_path = np.zeros((network.links + 1, len(paths.owners)))
    for column, links in enumerate(paths.links_PH):
        on_path[links, column] = 1
    rows = np.c_[on_path[:NO_LINK], -np.ones(network.links)]
    whole = np.c_[np.equal.outer(np.arange(len(flows)), paths.owners), np.zeros(len(flows))]
    goal = np.r_[np.zeros(len(paths.owners)), 1]
    best = linprog(goal, A_ub=rows, b_ub=np.zeros(len(rows)), A_eq=whole, b_eq=np.ones(len(flows)))
    load_L = usage(network, flows, "adaptive", 0).sum(axis=1)[2 * network.endpoints :]
    # Greedy placement of 16 pieces per flow.
    assert best.fun - 1e-9 <= load_L.max() <= 1.5 * best.fun + 1 / 16


def test_an_all_to_all_on_2048_endpoints_is_limited_by_the_endpoints_unless_hashes_collide():
    network = Network(TwoLayerFatTree(radix=64).build())
    assert network.endpoints == 2048
    shares = {routing: all_to_all_bandwidth(network, routing) for routing in ROUTINGS}
    assert shares["static"] == pytest.approx(1)
    assert shares["sprayed"] == pytest.approx(1)
    assert shares["adaptive"] == pytest.approx(1, abs=0.01)
    # 2016 flows per uplink, whose largest of 4096 counts is about 3.7 deviations above the mean.
    assert shares["ecmp"] == pytest.approx(1 / (1 + 3.7 / 2016**0.5), abs=0.03)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("routing", ROUTINGS)
def test_many_senders_to_one_share_its_link_whatever_the_routing(name, routing):
    assert incast_rate(NETWORKS[name], 3, routing) == pytest.approx(1 / 3)


def test_endpoints_without_a_path_are_refused():
    with pytest.raises(UserError, match=r"endpoints without a path .* expected one plane"):
        Network(TwoLayerFatTree(radix=4, planes=2).build())
