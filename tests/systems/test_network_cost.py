"""Prices fitted to printed costs, against an independent fit and prices made up for the test."""

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.yaml_file import read_yaml
from harness.errors import UserError
from harness.systems.dragonfly import Dragonfly
from harness.systems.network_cost import (
    Observation,
    Printed,
    centre,
    cost,
    cost_range,
    observation,
    price_range,
)
from harness.systems.network_latency import Latency
from harness.systems.slim_fly import SlimFly
from harness.systems.topologies import Counts, ThreeLayerFatTree, TwoLayerFatTree

COUNTS = {
    "ft2": TwoLayerFatTree(radix=64).counts,
    "mpft": TwoLayerFatTree(radix=64, planes=8).counts,
    "ft3": ThreeLayerFatTree(radix=64).counts,
    "slim_fly": SlimFly(radix=64, q=28, endpoints_per_switch=21).counts,
    "dragonfly": Dragonfly(
        radix=64, group_switches=32, endpoints_per_switch=16, global_links=16, groups=511
    ).counts,
}
# Table 3: M$ and k$ per endpoint.
PRINTED = {
    "ft2": (9, 4.39),
    "mpft": (72, 4.39),
    "ft3": (491, 7.5),
    "slim_fly": (146, 4.4),
    "dragonfly": (1522, 5.8),
}
WITHOUT_LOCAL, LOCAL = ("switch", "link"), ("switch", "link", "local_link")
CABLES = ("switch", "link", "local_link", "endpoint")


def observed(name: str) -> Observation:
    total, each = PRINTED[name]
    row = {"endpoints": 1, "switches": 1, "links": 1, "cost": total, "cost_per_endpoint": each}
    return observation(COUNTS[name], Printed(**row))


ALL = [observed(name) for name in PRINTED]


def ends(vertices):
    return {item: (low[item], high[item]) for item, (low, high) in vertices.items()}


def test_one_price_for_all_links_fits_every_network_but_the_dragonfly():
    assert price_range(ALL, WITHOUT_LOCAL) is None
    assert price_range(ALL[:-1], WITHOUT_LOCAL) is not None


def test_cheaper_local_links_fit_all_networks_within_narrow_prices():
    # To the digits of an earlier, independent fit.
    found = ends(price_range(ALL, LOCAL))
    assert found["switch"] == pytest.approx((81.3e3, 82.6e3), abs=50)
    assert found["link"] == pytest.approx((515, 575), abs=1)
    assert found["local_link"] == pytest.approx((407, 466), abs=1)


def test_priced_cables_of_endpoints_leave_the_prices_open():
    found = ends(price_range(ALL, CABLES))
    assert found["switch"][1] > 2 * found["switch"][0]
    assert found["link"][1] > 3 * found["link"][0]
    assert found["endpoint"] == pytest.approx((0, 800), abs=10)


@pytest.mark.parametrize("name", PRINTED)
@pytest.mark.parametrize("known", [True, False])
def test_prices_inside_the_region_give_what_is_printed(name, known):
    inside = {"switch": 82e3, "link": 543, "local_link": 434}
    prices = inside if known else centre(price_range(ALL, LOCAL))
    value, (total, each) = cost(COUNTS[name], prices), PRINTED[name]
    assert round(value / 1e6) == total
    digits = len(str(each).partition(".")[2])
    assert round(value / 1e3 / COUNTS[name].endpoints, digits) == each


@pytest.mark.parametrize("name", PRINTED)
def test_what_the_other_networks_allow_overlaps_with_what_is_printed(name):
    low, high = cost_range(COUNTS[name], [observed(one) for one in PRINTED if one != name], LOCAL)
    here = observed(name)
    assert max(low, here.low) <= min(high, here.high)


@given(
    prices=st.fixed_dictionaries(
        {
            "switch": st.floats(1e3, 1e5),
            "link": st.floats(100, 1e3),
            "local_link": st.floats(1, 100),
        }
    )
)
def test_prices_that_made_the_costs_are_found(prices):
    exact = [
        Observation(counts, value := cost(counts, prices), value * (1 + 1e-9))
        for counts in COUNTS.values()
    ]
    for item, (low, high) in ends(price_range(exact, LOCAL)).items():
        assert (low, high) == pytest.approx((prices[item], prices[item]), rel=1e-3)


def test_costs_are_rounded_to_their_last_digit():
    here = Counts(endpoints=1000, switches=1, links=1)
    row = {"endpoints": 1, "switches": 1, "links": 1}
    total = observation(here, Printed(**row, cost=7, cost_per_endpoint=Decimal("7.0")))
    assert (total.low, total.high) == (6.95e6, 7.05e6)
    each = observation(here, Printed(**row, cost=Decimal("7.00"), cost_per_endpoint=7))
    assert (each.low, each.high) == (6.995e6, 7.005e6)


def test_too_few_costs_are_refused():
    with pytest.raises(
        UserError, match="prices of switch, local_link: found too few printed costs"
    ):
        price_range([observed("ft2")], ("switch", "local_link"))


def test_local_links_cost_what_links_cost_unless_priced():
    here = Counts(endpoints=5, switches=3, links=10, local_links=4)
    assert cost(here, {"switch": 100.0, "link": 10.0}) == 400
    assert cost(here, {"switch": 100.0, "link": 10.0, "local_link": 1.0}) == 364
    assert cost(here, {"endpoint": 2.0}) == 10


@pytest.mark.parametrize(
    ("same_leaf", "cross_leaf", "three_layers", "saving"),
    [(2.8, 3.7, 4.6, 0.20), (3.6, 5.6, 7.6, 0.26)],
)
def test_two_layers_save_a_fifth_to_a_quarter_of_latency(
    same_leaf, cross_leaf, three_layers, saving
):
    latency = Latency(same_leaf=same_leaf, cross_leaf=cross_leaf)
    assert latency.through(0) == same_leaf
    assert latency.through(2) == pytest.approx(cross_leaf)
    assert latency.through(4) == pytest.approx(three_layers)
    assert 1 - latency.through(2) / latency.through(4) == pytest.approx(saving, abs=0.005)


def test_the_columns_of_the_experiment_are_those_of_table_3():
    path = Path(__file__).parents[2] / "config" / "experiments" / "network_topologies.yaml"
    rows = read_yaml(path)["arguments"]["printed"]
    assert {name: (row["cost"], row["cost_per_endpoint"]) for name, row in rows.items()} == PRINTED
