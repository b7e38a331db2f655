"""Records of networks and their traffic against printed numbers, closed forms and the ledger."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from record_values import assert_told_apart

from harness.config.claims_schema import load_claims
from harness.config.yaml_file import merge, read_yaml
from harness.errors import UserError
from harness.records.store import RECORD_COLUMNS, RUN_COLUMNS, write_table
from harness.reporting.claims import judge
from harness.reporting.results import Results
from harness.systems.dispatch_traffic import Dispatch, chosen_experts, messages
from harness.systems.network_evidence import network_topologies
from harness.systems.node_routing import expected_groups
from harness.systems.traffic_evidence import network_traffic
from harness.systems.traffic_scenarios import (
    Nodes,
    Planes,
    Rings,
    bandwidth_after,
    group_bandwidth,
    plane_bandwidth,
    rail_bandwidth,
    ring_times,
)
from paper_figures import network_latency as latency_figure
from paper_figures import network_topologies as topologies_figure
from paper_figures import network_traffic as traffic_figure

CONFIG = Path(__file__).parents[2] / "config"
TOPOLOGIES, TRAFFIC = (
    read_yaml(CONFIG / "experiments" / f"{name}.yaml")["arguments"]
    for name in ("network_topologies", "network_traffic")
)
SMALL: dict[str, Any] = {
    "seeds": [0, 1, 2],
    "all_to_all": {
        "networks": {"fat_tree_2": {"radix": 16}, "fat_tree_3": {"radix": 6}},
        "incast": [2, 8],
    },
    "rails": {"nodes": [4, 64]},
    "rings": {"queue_pairs": [1]},
    "failures": {"planes": [1, 4]},
    "dispatch": {"tokens": {"draws": 2000}},
}
NETWORK = Nodes(gpus_per_node=8, endpoints_per_leaf=32, spines=32)
PLANES = Planes(leaves=8, spines=4, endpoints_per_leaf=4)
DISPATCH = Dispatch(
    experts=256, experts_per_token=8, node_limit=4, gpus_per_node=8, draws=4000, seed=0
)


@pytest.fixture(scope="module")
def records() -> dict[str, list[dict]]:
    return {
        "network_topologies": network_topologies(**TOPOLOGIES),
        "network_traffic": network_traffic(**merge(TRAFFIC, SMALL)),
    }


@pytest.fixture(scope="module")
def results(records, tmp_path_factory) -> Results:
    folder = tmp_path_factory.mktemp("records")
    frame = pd.DataFrame([
        record | {"experiment": name, "run_id": name, "role": "compute",
                  "labels": json.dumps(record["labels"], sort_keys=True)}
        for name, some in records.items() for record in some
    ])  # fmt: skip
    write_table(frame, RECORD_COLUMNS, folder / "records.parquet")
    write_table(pd.DataFrame(), RUN_COLUMNS, folder / "runs.parquet")
    plan = {"scale": "smoke", "experiments": {name: {} for name in records}, "elsewhere": {}}
    (folder / "plan.json").write_text(json.dumps(plan))
    return Results(folder)


def values(records, metric: str, **labels) -> list[float]:
    some = [one for name in records for one in records[name] if one["metric"] == metric]
    return [one["value"] for one in some if one["labels"].items() >= labels.items()]


def test_no_two_records_are_told_apart_by_nothing(records):
    for some in records.values():
        assert_told_apart(some)


@pytest.mark.parametrize("what", ["endpoints", "switches", "links"])
def test_sizes_counted_on_graphs_are_those_of_the_formula_and_of_table_3(records, what):
    sizes = {
        name: [
            value
            for method in ("closed_form", "counted", "printed")
            for value in values(records, f"topology/{what}", topology=name, method=method)
        ]
        for name in TOPOLOGIES["topologies"]
    }
    assert all(len(set(found)) == 1 for found in sizes.values())
    assert len(sizes["mpft"]) == 3
    # Without a graph, and without a printed number.
    assert len(sizes["slim_fly"]) == len(sizes["slim_fly_27"]) == 2


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"over": "ft3", "quantity": "switches_per_endpoint"}, -0.4),
        ({"over": "ft3", "quantity": "links_per_endpoint"}, -0.5),
        ({"over": "ft3", "quantity": "cost_per_endpoint", "method": "fitted"}, -0.414),
        ({"over": "ft3", "quantity": "cost_per_endpoint", "method": "printed"}, -0.415),
        ({"over": "dragonfly", "quantity": "cost_per_endpoint", "method": "printed"}, -0.243),
    ],
)
def test_what_several_planes_save(records, labels, expected):
    [found] = values(records, "network/relative_difference", topology="mpft", **labels)
    assert found == pytest.approx(expected, abs=0.001)


# arXiv 2505.09343, table 5, from near to far.
LATENCIES = {"nvlink": [3.33], "infiniband": [2.8, 3.7], "roce": [3.6, 5.6]}


def test_printed_latencies_are_those_of_table_5(records):
    printed = {name: values(records, "network/latency_at_distance", network=name, method="printed")
               for name in LATENCIES}  # fmt: skip
    assert printed == LATENCIES


@pytest.mark.parametrize(
    # Two switches more than within a leaf take 0.9 and 2.0 us more, and so do two more again.
    ("network", "per_switch", "cross_pod"),
    [("infiniband", 0.45, 4.6), ("roce", 1.0, 7.6)],
)
def test_latencies_grow_by_the_same_for_every_switch(records, network, per_switch, cross_pod):
    [found] = values(records, "network/latency_per_switch", network=network)
    assert found == pytest.approx(per_switch)
    by_switches = [
        values(records, "network/latency_at_distance", network=network, switches=count)[0]
        for count in (1, 3, 5)
    ]
    assert by_switches[-1] == pytest.approx(cross_pod)
    assert np.polyfit([1, 3, 5], by_switches, 1)[0] == pytest.approx(per_switch)
    # Endpoints of different pods are as far apart as any in a three-layer fat tree.
    [longest] = values(records, "network/latency", network=network, topology="ft3")
    assert longest == pytest.approx(cross_pod)


def test_only_other_pods_are_extrapolated(records):
    rows = [one["labels"] for one in records["network_topologies"]
            if one["metric"] == "network/latency_at_distance"]  # fmt: skip
    extrapolated = {(row["network"], row["distance"]) for row in rows
                    if row["method"] == "extrapolated"}  # fmt: skip
    assert extrapolated == {("infiniband", "cross_pod"), ("roce", "cross_pod")}
    assert [row["network"] for row in rows if row["distance"] == "same_node"] == ["nvlink"]


def test_bisections_are_full_in_fat_trees_and_bounded_from_both_sides_elsewhere(records):
    for name in ("ft2", "ft3"):
        assert values(records, "topology/bisection", topology=name) == [1.0]
    for name in ("slim_fly_27", "slim_fly_29", "dragonfly", "dragonfly_513"):
        [low] = values(records, "topology/bisection", topology=name, measure="spectral_bound")
        [high] = values(records, "topology/bisection", topology=name, measure="largest_flow")
        assert 0.2 < low <= high <= 1


@pytest.mark.parametrize("nodes", [2, 4, 64])
@pytest.mark.parametrize("routing", ["sprayed", "adaptive", "static"])
def test_planes_and_rails_are_equally_fast_and_as_fast_as_the_network_cards(nodes, routing):
    planes = plane_bandwidth(nodes, NETWORK, 3.2, routing)
    # All bytes but those within the node go through the card, at most at its speed; between two
    # nodes NVLink, with 3.2 times that speed, limits what it forwards: 14 of 16 messages.
    bound = min(nodes / (nodes - 1), 3.2 * 8 / 7)
    assert planes == pytest.approx(bound, rel=0.01)
    for forwarded in (True, False):
        rails = rail_bandwidth(nodes, NETWORK, 3.2, routing, forwarded)
        assert rails == pytest.approx(planes, rel=0.01)


def test_slow_nvlink_limits_what_changes_planes():
    # 7 of 8 messages go over NVLink first.
    assert plane_bandwidth(64, NETWORK, 0.5, "sprayed") == pytest.approx(0.5 * 8 / 7)
    assert rail_bandwidth(64, NETWORK, 0.5, "sprayed", forwarded=True) == pytest.approx(4 / 7)
    assert rail_bandwidth(64, NETWORK, 0.5, "sprayed", forwarded=False) == pytest.approx(64 / 63)


@pytest.mark.parametrize("planes", [2, 3, 4, 8])
@pytest.mark.parametrize("failure", ["plane", "leaf"])
@pytest.mark.parametrize("spread", ["even", "by_capacity"])
def test_a_lost_plane_or_leaf_costs_its_share_of_the_bandwidth_and_joins_all(
    planes, failure, spread
):
    bandwidth, joined = bandwidth_after(PLANES, planes, failure, spread)
    assert (bandwidth, joined) == (pytest.approx(1 - 1 / planes), 1)


def test_with_one_plane_a_lost_leaf_cuts_its_endpoints_off():
    bandwidth, joined = bandwidth_after(PLANES, 1, "leaf", "even")
    assert (bandwidth, joined) == (pytest.approx(1), pytest.approx(28 * 27 / (32 * 31)))
    assert bandwidth_after(PLANES, 1, "plane", "even") == (0, 0)


@pytest.mark.parametrize("planes", [1, 2, 4])
def test_a_lost_spine_costs_less_the_more_planes_share_the_load_by_capacity(planes):
    # 28 of 31 bytes leave a leaf, through 3 spines instead of 4.
    up = 3 / 4 * 31 / 28
    assert bandwidth_after(PLANES, planes, "spine", "even")[0] == pytest.approx(up)
    by_capacity = bandwidth_after(PLANES, planes, "spine", "by_capacity")[0]
    # The other planes carry 1 / (P - 1/4) of the bytes each with 1/P of an endpoint's bandwidth.
    expected = up if planes == 1 else 1 - 1 / (4 * planes)
    assert by_capacity == pytest.approx(expected)


@pytest.mark.parametrize("groups", [8, 4, 2, 1])
@pytest.mark.parametrize("routing", ["static", "sprayed", "adaptive"])
def test_regular_rings_without_collisions_use_all_cards_of_a_group(groups, routing):
    spec = Rings(nodes=8, gpus_per_node=8, nodes_per_leaf=2, spines=16)
    assert group_bandwidth(ring_times(spec, "strided", routing, 1), groups) == 8 / groups


def test_rings_of_one_leaf_need_no_spine_and_those_of_many_share_one():
    alone = Rings(nodes=4, gpus_per_node=2, nodes_per_leaf=4, spines=1)
    np.testing.assert_allclose(ring_times(alone, "strided", "ecmp", 1), 1)
    # Two leaves of two nodes: all four cards of a leaf send to the other leaf over one link.
    across = Rings(nodes=4, gpus_per_node=2, nodes_per_leaf=2, spines=1)
    np.testing.assert_allclose(ring_times(across, "strided", "ecmp", 3), 4)


def test_a_group_waits_for_its_slowest_ring():
    # Rings 0 and 2 are of the first group, 1 and 3 of the second.
    assert group_bandwidth(np.array([4.0, 1.0, 3.0, 1.0]), 2) == (2 / 4 + 2 / 1) / 2


def test_more_queue_pairs_bring_hashes_nearer_to_spraying(records):
    spec = Rings(**TRAFFIC["rings"]["network"])
    few, many = (
        np.mean([ring_times(spec, "strided", "ecmp", pairs, seed).mean() for seed in range(3)])
        for pairs in (1, 16)
    )
    assert 1 < many < few


def test_hashes_make_groups_slower_than_adaptive_routing_does(records):
    for groups in TRAFFIC["rings"]["groups"]:
        of = {"method": "simulated", "order": "strided", "groups": groups}
        slow, fast = (
            values(records, "traffic/ring_bandwidth", routing=name, **of)
            for name in ("ecmp", "adaptive")
        )
        assert max(slow) < 0.8 * min(fast)


@pytest.mark.parametrize("nodes", [4, 8, 16])
def test_unlimited_tokens_touch_as_many_nodes_as_the_closed_form_says(nodes):
    found = messages(DISPATCH, nodes, limited=False, scheme="forwarded").nodes
    # Five standard errors of a deviation below one.
    assert found == pytest.approx(expected_groups(256, nodes, 8), abs=5 / 4000**0.5)


def test_limited_tokens_touch_at_most_four_nodes_and_half_of_eight_messages():
    limited = messages(DISPATCH, 8, limited=True, scheme="forwarded")
    per_expert = messages(DISPATCH, 8, limited=True, scheme="per_expert")
    assert limited.nodes <= 4
    # One node in eight is the sender's own.
    assert limited.network == pytest.approx(limited.nodes * 7 / 8, rel=0.02)
    assert per_expert.network == pytest.approx(7, rel=0.02)


def test_messages_are_counted_as_by_hand():
    # Two nodes of two GPUs with two experts each, three experts per token.
    spec = Dispatch(experts=8, experts_per_token=3, node_limit=2, gpus_per_node=2, draws=50, seed=3)
    counted = {"forwarded": np.zeros(3), "per_gpu": np.zeros(3), "per_expert": np.zeros(3)}
    for experts in chosen_experts(spec, 2, limited=False).tolist():
        gpus = [expert // 2 for expert in experts]
        nodes = {gpu // 2 for gpu in gpus}
        distinct = set(gpus)
        counted["forwarded"] += len(nodes), len(nodes - {0}), len(distinct & {1, 3})
        counted["per_gpu"] += len(nodes), len(distinct & {2, 3}), len(distinct & {1})
        counted["per_expert"] += len(nodes), sum(g >= 2 for g in gpus), gpus.count(1)
    for scheme, sums in counted.items():
        found = messages(spec, 2, limited=False, scheme=scheme)
        np.testing.assert_allclose([found.nodes, found.network, found.nvlink], sums / 50)


def test_the_bound_of_dispatch_is_above_and_shaped_like_what_is_printed(records):
    of = {"scheme": "forwarded", "limit": 4}
    for gpus in (16, 32, 64, 128):
        [bound] = values(records, "dispatch/logical_bandwidth", gpus=gpus, **of)
        printed = values(records, "dispatch/logical_bandwidth", gpus=gpus, method="printed")
        assert len(printed) == 2
        assert all(0.7 < value / bound < 0.9 for value in printed)


VERDICTS = {
    "ds.network.cost": ["reproduced"],
    "ds.topology.costs": ["reproduced"],
    "ds.network.latency_roce": ["contradicted"],
    "ds.network.latency": ["contradicted"],
    "ds.mpft.equal": ["reproduced"],
    "ds.routing": ["reproduced"] * 3,
} | {
    f"ds.topology.{name}_{what}": ["reproduced"]
    for name in ("ft2", "mpft", "ft3", "slim_fly", "dragonfly")
    for what in ("endpoints", "switches", "links")
}


def test_the_ledger_has_these_verdicts(results):
    claims = load_claims(CONFIG / "claims.yaml")
    about = {
        name: claim
        for name, claim in claims.items()
        if {"network_topologies", "network_traffic"} & set(claim.experiments)
    }
    found = {name: [row["verdict"] for row in judge(name, about[name], results)] for name in about}
    assert found == VERDICTS


def test_the_figure_of_costs_marks_what_is_printed(results):
    [(experiment, figure)] = topologies_figure.draw(results).values()
    assert experiment == "network_topologies"
    printed = [row["cost_per_endpoint"] for row in TOPOLOGIES["printed"].values()]
    left, right = figure.axes
    for ax, along in ((left, "get_xdata"), (right, "get_ydata")):
        [marks] = [line for line in ax.lines if line.get_label() == "printed"]
        assert sorted(getattr(marks, along)()) == sorted(printed)
    names = [text.get_text() for text in left.get_yticklabels()]
    assert [name for name in names if name.endswith("*")] == ["slim_fly *"]
    plt.close(figure)


def test_the_figure_of_latencies_tells_printed_from_extrapolated(results):
    [(experiment, figure)] = latency_figure.draw(results).values()
    assert experiment == "network_topologies"
    left, right = figure.axes
    printed = {line.get_label().split(",")[0]: list(line.get_ydata())
               for line in left.lines if not line.get_label().startswith("_")}  # fmt: skip
    assert printed == {"NVLink": [3.33], "InfiniBand": [2.8, 3.7], "RoCE": [3.6, 5.6]}
    hollow = [list(line.get_ydata()) for line in left.lines
              if line.get_markerfacecolor() == "white" and len(line.get_xdata())]  # fmt: skip
    assert hollow == [pytest.approx([4.6]), pytest.approx([7.6])]
    ticks = [text.get_text() for text in left.get_xticklabels()]
    assert ticks == ["same node\n-", "same leaf\n1", "cross leaf\n3", "cross pod\n5"]
    heights = [bar.get_height() for bar in right.containers[0]]
    assert heights == pytest.approx([100 * (3.7 / 4.6 - 1), 100 * (5.6 / 7.6 - 1)])
    plt.close(figure)


def test_the_figure_of_latencies_draws_the_claim_of_the_ledger():
    claim = load_claims(CONFIG / "claims.yaml")["ds.network.latency"]
    drawn = (latency_figure.CLAIMED, latency_figure.TOLERANCE)
    assert drawn == (claim.value, claim.tolerance)


def test_the_figure_of_traffic_has_a_bar_per_routing_and_marks_what_is_printed(results):
    [(experiment, figure)] = traffic_figure.draw(results).values()
    assert experiment == "network_traffic"
    first, last = figure.axes[0], figure.axes[-1]
    assert len(first.patches) == 4 * len(TRAFFIC["all_to_all"]["networks"])
    printed = TRAFFIC["dispatch"]["printed"]
    assert [sorted(line.get_ydata()) for line in last.lines] == [
        sorted(printed[operation].values()) for operation in ("dispatch", "combine")
    ]
    plt.close(figure)


@pytest.mark.parametrize("module", [latency_figure, topologies_figure, traffic_figure])
def test_other_records_have_no_such_figure(results, module):
    other = Results(results.folder)
    other.plan = {"experiments": {"optimizers": {}}}
    assert module.draw(other) == {}


def changed(arguments: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    *keys, last = path.split(".")
    change: dict[str, Any] = {last: value}
    for key in reversed(keys):
        change = {key: change}
    return merge(arguments, change)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("topologies.ft2.radix", 63, "topologies.ft2.*radix: found 63.*such as 64"),
        ("formula_only", [], r"topologies.slim_fly.q: found 28.*27 or 29, or the name in formula"),
        ("formula_only", ["slimfly"], "found topology 'slimfly' .did you mean 'slim_fly'"),
        ("prices.chosen", "one_price", "prices: chosen: found 'one_price'"),
        ("prices.chosen", "one_link_price", "found 'one_link_price', which no prices fit"),
        ("latencies.roce.cross_leaf", 3, "cross_leaf: found 3.0, expected at least same_leaf"),
        ("node_latencies.nvlink", 0, "node_latencies.nvlink: found 0"),
        ("comparisons.cost", [["mpft", "ft4"]], "found topology 'ft4'"),
        ("drawn.ft2.radix", 5, "drawn.ft2.*radix: found 5.*such as 6"),
        ("drawn.slim_fly", {"q": 12, "radix": 40}, "drawn.slim_fly.q: found 12.*11 or 13$"),
    ],
)
def test_bad_arguments_of_topologies_are_named(path, value, message):
    with pytest.raises(UserError, match=message) as caught:
        network_topologies(**changed(TOPOLOGIES, path, value))
    assert str(caught.value).startswith("network_topologies: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("routings", ["random"], "routings.*found 'random'"),
        ("seeds", [], "seeds"),
        ("all_to_all.networks.fat_tree_2.planes", 2, "networks.fat_tree_2: network: .*one plane"),
        ("all_to_all.networks.slim_fly", {"q": 12, "radix": 40}, "slim_fly: q: found 12"),
        ("all_to_all.incast", [500], "incast: found 500, expected fewer than the 128 endpoints"),
        ("rails.nodes", [40], "nodes: found 40, expected at most 32 .* such as 32"),
        ("rings.groups", [3], "groups: found 3, expected a divisor of gpus_per_node, 8, such as 1"),
        ("rings.network.nodes", 6, "nodes: found 6, expected a multiple of nodes_per_leaf, 4"),
        ("failures.network.spines", 1, "spines: found 1"),
        ("dispatch.tokens.node_limit", 0, "node_limit: found 0"),
        ("dispatch.nodes", [3], "dispatch: nodes: found 3, expected 24 GPUs to divide the experts"),
        (
            "dispatch.tokens.experts_per_token",
            999,
            "dispatch: 2 nodes: num_experts_per_tok 999 is above",
        ),
    ],
)
def test_bad_arguments_of_traffic_are_named(path, value, message):
    with pytest.raises(UserError, match=message) as caught:
        network_traffic(**changed(merge(TRAFFIC, SMALL), path, value))
    assert str(caught.value).startswith("network_traffic: ")
    assert "\n" not in str(caught.value)
