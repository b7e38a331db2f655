"""Small networks as records, and drawn from them, against closed forms and a published graph."""

from pathlib import Path

import matplotlib.pyplot as plt
import networkx as nx
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from harness.config.yaml_file import read_yaml
from harness.systems.network_evidence import network_topologies
from paper_figures import network_graphs as figure_module

CONFIG = Path(__file__).parents[2] / "config"
ARGUMENTS = read_yaml(CONFIG / "experiments" / "network_topologies.yaml")["arguments"]


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return network_topologies(**ARGUMENTS)


# Endpoints, switches and links of k-port fat trees (k^2/2, 3k/2, k^2/2 per plane; k^3/4, 5k^2/4,
# k^3/2), of a Moore graph of degree 7 with 4 endpoints each, and of 9 groups of 4 switches, any two
# of which share a link, with 2 endpoints each.
DRAWN = {
    "mpft": (8 * 4**2 // 2, 8 * 3 * 4 // 2, 8 * 4**2 // 2),
    "ft2": (4**2 // 2, 3 * 4 // 2, 4**2 // 2),
    "ft3": (4**3 // 4, 5 * 4**2 // 4, 4**3 // 2),
    "slim_fly": (4 * (1 + 7**2), 1 + 7**2, 7 * (1 + 7**2) // 2),
    "dragonfly": (2 * 4 * 9, 4 * 9, 9 * (4 * 3 // 2) + 9 * 8 // 2),
}


def test_the_figure_of_graphs_draws_every_switch_and_link(records, results_of):
    [(experiment, figure)] = figure_module.draw(results_of("network_topologies", records)).values()
    assert experiment == "network_topologies"
    panels = dict(zip(DRAWN, figure.axes, strict=True))
    for name, (endpoints, switches, links) in DRAWN.items():
        first, second = panels[name].get_title(loc="left").split("\n")
        assert first.startswith(figure_module.NAMES[name])
        assert second == f"{endpoints} endpoints, {switches} switches, {links} links"
        squares = {tuple(place) for place in panels[name].collections[-1].get_offsets().round(9)}
        assert len(squares) == switches
        lines = [line.vertices.round(9) for some in panels[name].collections
                 if isinstance(some, LineCollection) for line in some.get_paths()]  # fmt: skip
        joined = [{tuple(line[0]), tuple(line[-1])} <= squares for line in lines]
        # The others are the cables of endpoints.
        assert (sum(joined), len(joined)) == (links, links + endpoints)
    plt.close(figure)


def drawn_graph(records: list[dict], name: str) -> nx.MultiGraph:
    graph = nx.MultiGraph()
    for one in records:
        labels = one["labels"]
        if one["metric"] == "network_graph/endpoints" and labels["topology"] == name:
            graph.add_node(labels["switch"], endpoints=int(one["value"]), **labels)
        if one["metric"] == "network_graph/links" and labels["topology"] == name:
            graph.add_edges_from(int(one["value"]) * [(labels["switch"], labels["other"])])
    return graph


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_switches_use_no_more_ports_than_they_have(records, name):
    graph, radix = drawn_graph(records, name), ARGUMENTS["drawn"][name]["radix"]
    assert len(graph) == DRAWN[name][1]
    used = [graph.degree(switch) + graph.nodes[switch]["endpoints"] for switch in graph]
    assert max(used) <= radix


def test_the_drawn_slim_fly_has_the_numbers_of_the_hoffman_singleton_graph(records):
    graph, published = drawn_graph(records, "slim_fly"), nx.hoffman_singleton_graph()
    assert graph.number_of_edges() == published.number_of_edges()
    assert sorted(dict(graph.degree).values()) == sorted(dict(published.degree).values())
    assert nx.diameter(graph) == nx.diameter(published) == 2


def test_cards_of_a_drawn_node_reach_one_plane_each(records):
    graph = drawn_graph(records, "mpft")
    plane_of = {switch: place for place, plane in enumerate(nx.connected_components(graph))
                for switch in plane}  # fmt: skip
    ports = [one for one in records if one["metric"] == "network_graph/ports"]
    assert {one["labels"]["topology"] for one in ports} == {"mpft"}
    for node in range(8):
        own = [one for one in ports if one["labels"]["node"] == node]
        assert [one["value"] for one in own] == [1] * 8
        assert {plane_of[one["labels"]["switch"]] for one in own} == set(range(8))
    attached = pd.Series([one["labels"]["switch"] for one in ports]).value_counts()
    assert all(attached.get(switch, 0) == graph.nodes[switch]["endpoints"] for switch in graph)


def test_other_records_have_no_such_figure(records, results_of):
    others = [one for one in records if not one["metric"].startswith("network_graph/")]
    assert figure_module.draw(results_of("network_topologies", others)) == {}
