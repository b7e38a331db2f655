"""Incast and the switch behind it against queueing theory and conservation laws."""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_values import assert_told_apart

from harness.config.yaml_file import merge, read_yaml
from harness.errors import UserError
from harness.reporting.incast_tables import incast_tables
from harness.systems.incast.controls import DelayBased, ReceiverPaced, Unlimited
from harness.systems.incast.evidence import incast
from harness.systems.incast.reference import (
    FIFO_SATURATION,
    mean_wait,
    saturation_throughput,
    simulated_mean_wait,
)
from harness.systems.incast.simulation import Flow, simulate
from harness.systems.incast.switch import Packet, Switch
from paper_figures import incast as figure

CONFIG = Path(__file__).parents[2] / "config"
ARGUMENTS = merge(read_yaml(CONFIG / "experiments" / "incast.yaml")["arguments"], {
    "traffic": {"senders": [8], "burst_bytes": 524288, "victim_bytes": 131072,
                "victim_starts": [0.5]},
    "link": {"latency": 1, "buffer_bytes": 131072},
    "saturation": {"ports": [2], "loads": [0.5], "slots": 500},
})  # fmt: skip
QUEUES = ("fifo", "shared_buffer", "per_output", "per_queue_pair")


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return incast(**ARGUMENTS)


def head_of_line_saturation(ports: int) -> float:
    """Saturation throughput by the Markov chain of how many first packets each output has.

    In a slot every output that somebody wants passes one packet, and what replaces it goes to any
    output with equal probability.
    """
    states = [s for s in product(range(ports + 1), repeat=ports) if sum(s) == ports]
    number = {state: i for i, state in enumerate(states)}
    chain = np.zeros((len(states), len(states)))
    for state in states:
        passed = sum(count > 0 for count in state)
        for new in product(range(ports), repeat=passed):
            after = [max(count - 1, 0) for count in state]
            for output in new:
                after[output] += 1
            chain[number[state], number[tuple(after)]] += ports**-passed
    stationary = np.linalg.matrix_power(chain, 1024)[0]
    return (
        float(sum(p * np.count_nonzero(s) for p, s in zip(stationary, states, strict=True))) / ports
    )


def saturation(ports: int, queues: str) -> float:
    return saturation_throughput(ports, queues=queues, slots=12_000, iterations=3, seed=1)


@pytest.mark.parametrize("ports", [2, 3, 4])
def test_head_of_line_blocking_saturates_as_its_markov_chain(ports):
    assert saturation(ports, "fifo") == pytest.approx(head_of_line_saturation(ports), abs=0.01)


def test_the_markov_chain_gives_the_published_table():
    # Karol, Hluchyj and Morgan 1987, table I.
    published = {2: 0.75, 3: 0.6825, 4: 0.6553}
    found = {ports: head_of_line_saturation(ports) for ports in published}
    assert found == pytest.approx(published, abs=1e-4)


def test_with_more_ports_head_of_line_blocking_nears_its_limit_and_virtual_queues_pass_all():
    few, many = saturation(4, "fifo"), saturation(24, "fifo")
    assert FIFO_SATURATION < many < few
    assert many == pytest.approx(FIFO_SATURATION, abs=0.02)
    assert saturation_throughput(
        8, queues="per_output", slots=1000, iterations=3, seed=0
    ) == pytest.approx(1, abs=0.002)  # fmt: skip


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_random_arrivals_wait_as_pollaczek_and_khinchine_say(load):
    found = np.mean([simulated_mean_wait(load, 8, slots=20_000, seed=seed) for seed in range(2)])
    assert found == pytest.approx(7 / 8 * load / (2 * (1 - load)), rel=0.07)
    assert found == pytest.approx(mean_wait(load, 8), rel=0.07)
    assert mean_wait(load, 10**9) == pytest.approx(load / (2 * (1 - load)))


@given(st.data())
def test_a_slot_matches_every_port_once_and_leaves_no_pair_that_could_be_matched(data):
    ports = data.draw(st.integers(1, 4))
    inputs = data.draw(st.lists(st.integers(0, ports - 1), min_size=1, max_size=8))
    switch = Switch(inputs, iterations=8)
    waiting: list[list[int]] = [[] for _ in inputs]
    for queue, output in data.draw(
        st.lists(st.tuples(st.integers(0, len(inputs) - 1), st.integers(0, 3)), max_size=30)
    ):
        switch.push(queue, Packet(output, 0, 0))
        waiting[queue].append(output)
    for _ in range(4):
        first = {(inputs[q], outputs[0]) for q, outputs in enumerate(waiting) if outputs}
        left = switch.step()
        for queue, packet in left:
            assert waiting[queue].pop(0) == packet.output
        used_inputs = [inputs[queue] for queue, _ in left]
        used_outputs = [packet.output for _, packet in left]
        assert len(set(used_inputs)) == len(used_inputs)
        assert len(set(used_outputs)) == len(used_outputs)
        assert all(i in used_inputs or o in used_outputs for i, o in first)
    assert +switch.backlog == Counter(output for outputs in waiting for output in outputs)


def run(flows, queues="per_output", control=None, hop=3, buffer=40):
    return simulate(
        flows, queues, control or Unlimited(), hop=hop, buffer=buffer, iterations=3
    )  # fmt: skip


def paced(flows, hop=3):
    return ReceiverPaced([f.output for f in flows], [f.packets for f in flows],
                         [f.start for f in flows], 4 * hop)  # fmt: skip


@given(st.integers(2, 6), st.integers(8, 40), st.sampled_from(QUEUES), st.integers(1, 5))
@settings(max_examples=25)
def test_a_burst_takes_what_the_receivers_link_takes(senders, packets, queues, hop):
    flows = [Flow(port, 0, packets, 0) for port in range(senders)]
    unlimited = run(flows, queues, hop=hop)
    assert max(unlimited.finished) == 2 * hop + senders * packets
    # A request there and a grant back come before the first packet.
    granted = run(flows, queues, paced(flows, hop), hop=hop)
    assert max(granted.finished) == 6 * hop + senders * packets
    # Two inputs may be granted in one slot and reach the switch in one: never more than that.
    assert granted.peak_backlog[0] <= 2
    assert sum(granted.paused.values()) == 0


@given(st.integers(1, 60), st.integers(1, 5), st.sampled_from(QUEUES))
def test_alone_a_message_takes_its_packets_and_the_way(packets, hop, queues):
    flows = [Flow(0, 0, packets, 7)]
    for control in (Unlimited(), DelayBased(1, 4 * hop, 2)):
        assert run(flows, queues, control, hop=hop).finished == (7 + 2 * hop + packets,)


def test_an_empty_network_is_crossed_four_times_before_the_acknowledgement():
    seen = []

    class Watched(Unlimited):
        def acknowledged(self, flow: int, slot: int, round_trip: int) -> None:
            seen.append(round_trip)

    run([Flow(0, 0, 40, 0)], control=Watched(), hop=3)
    assert set(seen) == {4 * 3}


def test_a_receiver_grants_in_turn():
    flows = [Flow(port, 0, 20, 0) for port in range(4)]
    finished = run(flows, control=paced(flows)).finished
    assert max(finished) - min(finished) == 3


@given(st.integers(2, 4), st.data())
@settings(max_examples=60)
def test_no_queue_that_always_has_packets_is_starved(ports, data):
    pairs = st.tuples(st.integers(0, ports - 1), st.integers(0, ports - 1))
    wanted = sorted(data.draw(st.sets(pairs, min_size=1)))
    switch = Switch([port for port, _ in wanted], iterations=ports)
    for queue in [*range(len(wanted))] * 2:
        switch.push(queue, Packet(wanted[queue][1], 0, 0))
    served = Counter()
    # McKeown 1999, section III: a cell is served within N^2 slots of becoming first.
    for _ in range(4):
        for _ in range(ports**2):
            for queue, packet in switch.step():
                switch.push(queue, packet)
                served[queue] += 1
        assert set(served) == set(range(len(wanted)))
        served.clear()


@given(
    st.lists(
        st.builds(Flow, st.integers(0, 3), st.integers(0, 2), st.integers(1, 30),
                  st.integers(0, 40)),
        min_size=1, max_size=7,
    ),
    st.sampled_from(QUEUES),
    st.sampled_from(["none", "delay", "receiver"]),
)  # fmt: skip
@settings(max_examples=60)
def test_nothing_is_lost_early_or_beyond_the_buffers(flows, queues, control):
    made = {"none": Unlimited(), "delay": DelayBased(len(flows), 12, 2), "receiver": paced(flows)}
    outcome = run(flows, queues, made[control], buffer=8)
    for flow, finished in zip(flows, outcome.finished, strict=True):
        assert finished >= flow.start + 6 + flow.packets
    for output, peak in outcome.peak_backlog.items():
        assert peak <= 8 * len({flow.port for flow in flows if flow.output == output})


def victim_rate(senders: int, queues: str, output: int, control=None) -> float:
    """Rate of a message of 300 packets on sender 0's link, in the midst of a long burst."""
    burst = [Flow(port, 0, 1500, 0) for port in range(senders)]
    flows = [*burst, Flow(0, output, 300, 1000)]
    outcome = run(flows, queues, control(len(flows)) if control else None, hop=2, buffer=16)
    return 300 / (outcome.finished[-1] - 1000 - 4)


@pytest.mark.parametrize("senders", [3, 6])
def test_in_one_queue_a_victim_keeps_step_with_the_burst_packet_before_it(senders):
    # Sender and queue take turns, so that of two packets one is the burst's, at 1 / senders.
    assert victim_rate(senders, "fifo", 1) == pytest.approx(1 / senders, rel=0.05)
    for queues in ("fifo", "shared_buffer", "per_output"):
        assert victim_rate(senders, queues, 0) == pytest.approx(1 / (2 * senders), rel=0.06)


@pytest.mark.parametrize("senders", [3, 6])
def test_virtual_queues_with_own_buffers_give_max_min_fair_shares(senders):
    for queues in ("per_output", "per_queue_pair"):
        assert victim_rate(senders, queues, 1) == pytest.approx(1 - 1 / senders, rel=0.02)
    assert victim_rate(senders, "per_queue_pair", 0) == pytest.approx(1 / (senders + 1), rel=0.02)


def test_a_full_shared_buffer_pauses_the_link_unless_delays_are_kept_short():
    paused = victim_rate(6, "shared_buffer", 1)
    assert paused < 0.6 * (1 - 1 / 6)
    controlled = victim_rate(6, "shared_buffer", 1, lambda flows: DelayBased(flows, 8, 4))
    assert controlled == pytest.approx(1 - 1 / 6, rel=0.05)


def window(control: DelayBased) -> int:
    """The packets that flow 0 may send without an acknowledgement."""
    count = 0
    while control.allows(0, 10**6):
        control.sent(0, 10**6)
        count += 1
    return count


def test_a_window_grows_by_one_packet_per_round_trip_and_shrinks_by_the_excess_of_the_delay():
    control = DelayBased(1, 100, 20)
    assert window(control) == 100
    for _ in range(100):
        control.acknowledged(0, 50, 119)
    assert window(control) == 101 - 1  # the sum of 1 / w for 100 acknowledgements is just below 1
    control = DelayBased(1, 100, 20)
    for slot in (200, 250, 349):  # only the first is a round trip after the last decrease
        control.acknowledged(0, slot, 150)
    # 1 - 0.8 * (150 - 120) / 150 = 0.84; three acknowledgements count as sent before.
    assert window(control) == 84 + 3
    control = DelayBased(1, 100, 20)
    control.acknowledged(0, 2000, 1000)
    assert window(control) == 50 + 1  # at most halved


def test_below_one_packet_a_flow_is_paced():
    control = DelayBased(1, 1, 1)
    for slot in (1000, 3000, 5000):
        control.sent(0, slot)
        control.acknowledged(0, slot, 1000)  # 1, halved three times
    control.sent(0, 10_000)
    assert not control.allows(0, 10**6)  # in flight
    control.acknowledged(0, 10_001, 1)  # shorter than the target: 1/8 + 1
    assert control.allows(0, 10_001)


def test_no_two_records_are_told_apart_by_nothing(records):
    assert_told_apart(records)


def test_the_ledger_has_these_verdicts(records, verdicts_of):
    assert verdicts_of("incast", records) == {
        "ds.incast.queues": "reproduced",
        "ds.incast.control": "reproduced",
    }


def test_figure_shows_every_control_and_the_limit(records, results_of):
    [(_, drawn)] = figure.draw(results_of("incast", records)).values()
    assert [len(ax.lines) for ax in drawn.axes] == [4] * 6 + [3, 3, 3]
    [limit] = [line for line in drawn.axes[-1].lines if line.get_label().startswith("_")]
    assert limit.get_ydata()[0] == pytest.approx(0.5858, abs=1e-4)


def test_the_table_has_a_row_for_queues_and_control_with_what_was_recorded(records, results_of):
    [table] = incast_tables(results_of("incast", records), "incast")
    assert len(table.numbers) == 4 * 3
    row = table.numbers.set_index(["queues", "control"]).loc["shared_buffer", "none"]
    shares = [r["value"] for r in records if r["metric"] == "incast/victim_share" and {
        "queues": "shared_buffer", "control": "none", "victim": "same_input"
    }.items() <= r["labels"].items()]  # fmt: skip
    assert row["a sender's link"] == pytest.approx(np.mean(shares))
    # At most what the inputs of eight senders hold.
    assert 0 < row["MB in the switch"] <= 8 * ARGUMENTS["link"]["buffer_bytes"] / 1e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"traffic": {"senders": [1]}}, r"traffic.senders: found 1, expected at least 2"),
        ({"link": {"bufer_bytes": 1}}, "unknown key 'bufer_bytes'.* mean 'buffer_bytes'"),
        ({"link": {"buffer_bytes": 4096}}, "buffer_bytes: found 4096, expected at least 3 packets"),
        ({"saturation": {"loads": [1.0]}}, r"saturation.loads: found \[1.0\]"),
        ({"traffic": {"victim_starts": [1.5]}}, "victim_starts.0: found 1.5"),
        ({"queues": ["voq"]}, "queues.0: found 'voq', expected 'fifo', 'shared_buffer'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(UserError, match=message):
        incast(**merge(ARGUMENTS, change))
