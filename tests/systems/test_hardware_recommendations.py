"""Closed forms of recommendations against published numbers, drawn tokens and their own laws."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from record_values import assert_told_apart, only

from harness.config.catalog import load_models
from harness.config.yaml_file import read_yaml
from harness.errors import UserError
from harness.systems.dequantization import scaling_operations, scaling_share, scaling_time_share
from harness.systems.hardware_recommendations import hardware_recommendations
from harness.systems.message_costs import burst_time, fence_time, message_rate
from harness.systems.multicast import SCHEMES, copies
from harness.systems.node_routing import Routing, simulated_groups
from harness.systems.shared_link import DISCIPLINES, finish_times, lane_bandwidth, rate_beside

CONFIG = Path(__file__).parents[2] / "config"
EXPERIMENT = read_yaml(CONFIG / "experiments" / "hardware_recommendations.yaml")
MODELS = load_models(CONFIG / "models.yaml")
GIVEN = EXPERIMENT["arguments"] | {"models": {name: MODELS[name] for name in EXPERIMENT["models"]}}
POSITIVE = st.floats(0.01, 1e6)


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return hardware_recommendations(**GIVEN)


def test_no_two_records_are_told_apart_by_nothing(records):
    assert_told_apart(records)


# --- a link that is shared ------------------------------------------------------------------------


@given(POSITIVE, POSITIVE, POSITIVE)
def test_no_discipline_keeps_a_link_busy_longer_or_beats_its_bandwidth(size, other, bandwidth):
    for order in DISCIPLINES:
        own, rest = finish_times(size, other, bandwidth, order)
        assert max(own, rest) == pytest.approx((size + other) / bandwidth)
        assert own >= size / bandwidth * (1 - 1e-12)
        assert rest >= other / bandwidth * (1 - 1e-12)


@given(POSITIVE, POSITIVE, POSITIVE)
def test_priority_is_fastest_and_waiting_slowest(size, other, bandwidth):
    priority, fair, first = (finish_times(size, other, bandwidth, order)[0]
                             for order in ("priority", "fair", "first"))  # fmt: skip
    assert priority == pytest.approx(size / bandwidth)
    assert priority <= fair * (1 + 1e-12)
    assert fair <= first * (1 + 1e-12)


def shared_in_slices(size: float, other: float, bandwidth: float, slices: int) -> float:
    """Return when the first of two bursts ends if they take turns in small slices."""
    left, time, step = [size, other], 0.0, (size + other) / slices
    while left[0] > 0:
        for index in (0, 1):
            sent = min(step, left[index])
            left[index] -= sent
            time += sent / bandwidth
            if left[0] <= 0:
                break
    return time


@pytest.mark.parametrize(("size", "other"), [(2.0, 7.0), (7.0, 2.0), (3.0, 3.0)])
def test_fair_sharing_is_the_limit_of_taking_turns(size, other):
    turns = shared_in_slices(size, other, 5.0, 20_000)
    assert finish_times(size, other, 5.0, "fair")[0] == pytest.approx(turns, rel=1e-3)


@given(st.floats(0, 200), POSITIVE, POSITIVE, st.booleans())
def test_card_gets_no_more_than_it_asks_for_and_at_least_its_fair_share(
    stream, card, bandwidth, priority
):
    rate = rate_beside(stream, card, bandwidth, priority=priority)
    assert min(card, bandwidth / 2) <= rate <= min(card, bandwidth)
    assert rate <= rate_beside(stream, card, bandwidth, priority=True)


def test_lanes_of_a_node(records):
    # 160 lanes of 3.94 GB/s.
    assert 160 * lane_bandwidth() == pytest.approx(630, abs=0.5)
    assert only(records, "host/bandwidth", encoding="left out") == 640


def test_streams_slow_decoding_only_without_priority(records):
    ideal = only(records, "link/tokens_per_second", stream=0.0, priority=False)
    assert ideal == pytest.approx(67.76, abs=0.005)
    for stream in (20.0, 40.0, 60.0):
        assert only(records, "link/tokens_per_second", stream=stream, priority=True) == ideal
        assert only(records, "link/tokens_per_second", stream=stream, priority=False) < 0.9 * ideal


# --- messages, latency and fences -----------------------------------------------------------------


@given(st.floats(0, 1e-3), st.integers(1, 64), st.floats(1, 1e6), st.floats(1e6, 1e12))
def test_messages_are_bound_by_the_slower_of_posters_and_wire(overhead, posters, size, bandwidth):
    rate = message_rate(overhead, posters, size, bandwidth)
    assert rate <= bandwidth / size
    assert rate * overhead <= posters * (1 + 1e-12)
    assert rate <= message_rate(overhead, posters + 1, size, bandwidth)


@given(st.integers(1, 1000), st.floats(1e-9, 1e-3), st.floats(1, 1e6), st.floats(0, 1e-3))
def test_a_burst_takes_its_latency_once(messages, overhead, size, latency):
    without = burst_time(messages, overhead, 1, size, 50e9, 0)
    assert burst_time(messages, overhead, 1, size, 50e9, latency) == pytest.approx(
        without + latency
    )
    assert without >= messages * size / 50e9 * (1 - 1e-12)


def test_dispatch_without_overhead_takes_a_third_of_the_published_communication(records):
    # One of the three bytes per value of dispatch and combine: 120.96 us.
    time = only(records, "messages/dispatch_time", overhead=0.0, posted_by="proxy")
    assert time == pytest.approx(120.96 / 3)


def test_a_fence_is_one_round_trip(records):
    assert fence_time(3.7, 1) == pytest.approx(7.4)
    share = only(records, "fence/over_communication", network="infiniband", fences=1)
    assert share == pytest.approx(7.4 / 120.96)
    slowed = only(records, "fence/time_per_token", network="infiniband", fences=1)
    assert slowed - 14.757 == pytest.approx(61 * 2 * 7.4e-3, abs=0.001)


def test_latency_of_a_longer_path_and_what_it_adds(records):
    assert only(
        records, "latency/one_way", network="infiniband", path="three layers"
    ) == pytest.approx(4.6)
    assert only(records, "latency/one_way", network="roce", path="three layers") == pytest.approx(
        7.6
    )
    # 61 layers of two micro-batches of two transfers.
    assert only(records, "latency/per_microsecond") == pytest.approx(0.244)


def test_endpoints_of_two_layers_by_radix(records):
    assert only(records, "latency/endpoints", radix=64, layers=2) == 2048
    assert only(records, "latency/endpoints", radix=128, layers=2) == 8192


# --- copies and scales ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENT["models"])
def test_copies_fall_with_what_the_network_does(name):
    moe = MODELS[name].feed_forward
    values = [copies(moe, scheme) for scheme in SCHEMES]
    assert values == sorted(values, reverse=True)
    assert values[0] == moe.num_experts_per_tok
    assert values[-1] == 1


def test_copies_per_node_are_those_of_drawn_tokens(records):
    moe = MODELS["deepseek_v3"].feed_forward
    drawn = simulated_groups(moe, moe.n_group, Routing(draws=4000, seed=0)).double()
    error = 4 * float(torch.std(drawn)) / 4000**0.5
    mean = only(records, "multicast/copies", model="deepseek_v3", copies="node")
    assert mean == pytest.approx(float(drawn.mean()), abs=error)
    assert mean == pytest.approx(5.29, abs=0.005)


def test_bytes_are_those_of_the_copies(records):
    of = {"model": "deepseek_v3", "operation": "combine"}
    one = only(records, "multicast/bytes", copies="network", **of)
    assert one == pytest.approx(32 * 7000 * 2 / 1e6)
    assert only(records, "multicast/bytes", copies="expert", **of) == pytest.approx(8 * one)


def test_scaling_operations_are_those_of_a_product_by_blocks():
    inner, group = 12, 4
    a_K, b_K = torch.arange(1.0, 13), torch.arange(2.0, 14)
    scales_a_G, scales_b_G = torch.rand(3), torch.rand(3)
    result, operations = 0.0, 0
    for index in range(inner // group):
        part = float(a_K[index * group : (index + 1) * group] @ b_K[index * group :][:group])
        result += part * float(scales_a_G[index] * scales_b_G[index])
        operations += 3  # the product of the scales, the multiplication by it, the addition
    whole = (a_K * scales_a_G.repeat_interleave(group)) @ (
        b_K * scales_b_G.repeat_interleave(group)
    )
    assert result == pytest.approx(float(whole), rel=1e-5)
    assert scaling_operations(inner, group, columns_per_scale=1) == operations


@given(st.integers(1, 10_000), st.integers(1, 512), st.integers(1, 512))
def test_larger_groups_and_shared_scales_take_fewer_operations(inner, group, columns):
    share = scaling_share(inner, group, columns)
    assert scaling_share(inner, group + 1, columns) <= share
    assert scaling_share(inner, group, columns + 1) < share


def test_published_groups_add_less_than_a_hundredth(records):
    share = only(records, "scaling/operations", group=128)
    assert share == pytest.approx((2 + 1 / 128) / 256)
    assert scaling_time_share(share, 64, overlapped=True) == 0
    assert scaling_time_share(share, 64, overlapped=False) == pytest.approx(0.502, abs=0.001)


def test_the_ledger_has_this_verdict(records, verdicts_of):
    assert verdicts_of("hardware_recommendations", records) == {"ds.host.lanes": "contradicted"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("link", "lanes"), 0, "link.lanes: found 0"),
        (("messages", "posters"), {"proxy": 0}, "messages.posters.proxy: found 0"),
        (("networks", "radices"), [63], "networks.radices.* found 63, expected an even number"),
        (
            ("networks", "latencies", "roce"),
            {"same_leaf": 2, "cross_leaf": 1},
            "cross_leaf: found 1",
        ),
        (("scales", "groups"), [], "scales.groups: found"),
        (("deployment", "bandwith"), 1, "unknown key 'bandwith'.*mean 'bandwidth'"),
        (("models", "deepseek_v3"), MODELS["qwen2_5_72b"], "feed_forward: found swiglu, expected"),
    ],
)
def test_bad_arguments_are_named(path, value, message):
    changed = deepcopy(GIVEN)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(UserError, match=message):
        hardware_recommendations(**changed)
