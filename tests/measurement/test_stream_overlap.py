"""Overlap of two streams: its arithmetic, and the sweep with streams that are simulated."""

from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.measurement import stream_overlap as module
from harness.measurement.stream_overlap import Times, repetitions, stream_overlap

ARGUMENTS = {
    "gemm": [256, 256, 256],
    "copy_mebibytes": 4,
    "pairs": [["gemm", "device_to_device"], ["gemm", "host_to_device"]],
    "ratios": [0.5, 1, 3],
    "seconds": 0.05,
    "rounds": 2,
}
SECONDS = {"gemm": 2e-3, "device_to_device": 4e-4, "host_to_device": 9e-3}
positive = st.floats(1e-6, 1e3)


@given(first=positive, second=positive)
def test_perfect_overlap_hides_all_of_the_shorter_and_reaches_the_limit(first, second):
    times = Times(first, second, both=max(first, second))
    assert times.hidden_share == pytest.approx(1)
    assert times.speedup == pytest.approx(times.limit)
    assert 1 <= times.limit <= 2


@given(first=positive, second=positive)
def test_one_after_the_other_hides_nothing(first, second):
    times = Times(first, second, both=first + second)
    # The sum of a large and a small number has the large one's spacing.
    assert times.hidden_share == pytest.approx(0, abs=1e-12 * (first + second) / min(first, second))
    assert times.speedup == 1


def test_work_that_slows_each_other_down_hides_less_than_nothing():
    times = Times(first=1.0, second=2.0, both=4.0)
    assert times.hidden_share == -1
    assert times.speedup == 0.75


def test_work_fills_a_time_and_is_done_at_least_once():
    assert repetitions(0.01, 0.05) == 5
    assert repetitions(1.0, 0.05) == 1


@pytest.fixture
def simulated(monkeypatch):
    """Streams that take known times: by default perfectly overlapped."""
    clock = {"now": 0.0, "combine": max}

    def work(seconds):
        def advance():
            clock["now"] += seconds

        return advance

    def timed(works, streams):
        lengths = []
        for one in works:
            clock["now"] = 0.0
            one()
            lengths.append(clock["now"])
        return clock["combine"](lengths)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(module, "timed_on_streams", timed)
    monkeypatch.setattr(
        module, "_works", lambda *_: {name: work(one) for name, one in SECONDS.items()}
    )
    return clock


def values(records, metric):
    found = defaultdict(list)
    for record in records:
        if record["metric"] == f"streams/{metric}":
            labels = record["labels"]
            key = (labels["second"], labels["ratio"], labels.get("run") or labels.get("method"))
            found[key].append(record["value"])
    return found


def test_copies_last_as_long_as_the_ratio_says(simulated):
    times = values(stream_overlap(**ARGUMENTS, device="cuda"), "time")
    for kind in ("device_to_device", "host_to_device"):
        for ratio in ARGUMENTS["ratios"]:
            [first, again] = times[kind, ratio, "first"]
            assert first == again == pytest.approx(0.05)
            [second, _] = times[kind, ratio, "second"]
            # Whole copies.
            assert abs(second - ratio * first) <= SECONDS[kind] / 2 + 1e-9


def test_simulated_streams_give_the_closed_form_if_they_overlap_and_one_if_not(simulated):
    records = stream_overlap(**ARGUMENTS, device="cuda")
    speedups = values(records, "speedup")
    for kind in ("device_to_device", "host_to_device"):
        assert speedups[kind, 1, "measured"] == pytest.approx(speedups[kind, 1, "closed_form"])
    assert speedups["device_to_device", 1, "measured"] == pytest.approx([2, 2])
    assert values(records, "median_speedup")["device_to_device", 1, None] == pytest.approx([2])
    for shares in values(records, "hidden_share").values():
        assert shares == pytest.approx([1, 1])
    simulated["combine"] = sum
    speedups = values(stream_overlap(**ARGUMENTS, device="cuda"), "speedup")
    assert speedups["device_to_device", 3, "measured"] == [1, 1]
    assert speedups["device_to_device", 3, "closed_form"] == pytest.approx([4 / 3, 4 / 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cpu"}, "device: found 'cpu', expected 'cuda'"),
        ({"gemm": [64, 64]}, "gemm"),
        ({"pairs": [["gemm", "device_to_devise"]]}, "device_to_device"),
        ({"ratios": [0]}, "ratios"),
        ({"rounds": 0}, "rounds"),
    ],
)
def test_mistakes_end_with_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        stream_overlap(**{**ARGUMENTS, "device": "cuda", **change})
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_hides_copies_from_the_host_behind_products():
    arguments = {**ARGUMENTS, "gemm": [4096] * 3, "copy_mebibytes": 64, "ratios": [0.5]}
    shares = values(stream_overlap(**arguments, device="cuda"), "hidden_share")
    # The bus and the multiprocessors have nothing in common but memory.
    assert max(shares["host_to_device", 0.5, None]) > 0.5
