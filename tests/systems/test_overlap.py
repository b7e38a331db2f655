"""Overlap of two micro-batches: bounds, laws and a published trace."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.yaml_file import read_yaml
from harness.errors import UserError
from harness.systems.overlap import Layer, overlap, overlapped_time, speedup

CONFIG = Path(__file__).parents[2] / "config"
ARGUMENTS = read_yaml(CONFIG / "experiments" / "overlap.yaml")["arguments"]
TIMES = st.floats(0.01, 100)
LAYERS = st.builds(Layer, attention=TIMES, dispatch=TIMES, experts=TIMES, combine=TIMES,
                   layers=st.integers(1, 20))  # fmt: skip


def found(metric, **labels) -> float:
    [value] = [
        record["value"] for record in overlap(**ARGUMENTS)
        if record["metric"] == metric and record["labels"].items() >= labels.items()
    ]  # fmt: skip
    return value


@given(TIMES, TIMES, st.floats(0, 1))
def test_speedup_is_between_one_and_two(compute, communication, exposed):
    assert 1 - 1e-12 <= speedup(compute, communication, exposed) <= 2


@given(TIMES)
def test_speedup_is_two_only_for_equal_times_and_nothing_exposed(time):
    assert speedup(time, time) == 2
    assert speedup(time, 1.01 * time) < 2
    assert speedup(1.01 * time, time) < 2
    assert speedup(time, time, exposed=0.01) < 2


@given(TIMES, TIMES)
def test_all_exposed_is_no_overlap(compute, communication):
    assert speedup(compute, communication, exposed=1) == pytest.approx(1)


@given(TIMES, TIMES, st.floats(0, 1), st.floats(0, 1))
def test_more_exposed_is_never_faster(compute, communication, one, other):
    less, more = sorted((one, other))
    slower, faster = speedup(compute, communication, more), speedup(compute, communication, less)
    assert slower <= faster * (1 + 1e-12)


@given(LAYERS)
def test_simulated_overlap_is_bounded_by_the_closed_form(layer):
    one_by_one = 2 * layer.layers * (layer.compute + layer.communication)
    simulated = one_by_one / overlapped_time(layer)
    assert 1 - 1e-9 <= simulated <= speedup(layer.compute, layer.communication) * (1 + 1e-9)


@given(TIMES, st.integers(1, 100))
def test_equal_phases_lose_only_the_one_that_fills_the_pipeline(time, layers):
    layer = Layer(attention=time, dispatch=time, experts=time, combine=time, layers=layers)
    assert overlapped_time(layer) == pytest.approx((4 * layers + 1) * time)


def test_published_trace():
    trace = {"trace": "h800_training"}
    assert found("overlap/hidden_share", **trace) == pytest.approx(0.963, abs=0.001)
    traced = [found("overlap/speedup", method="traced", counted=counted, **trace)
              for counted in ("all kernels", "transfers")]  # fmt: skip
    assert traced == pytest.approx([1.84, 1.59], abs=0.005)
    # What the trace hides explains its speed-up.
    modelled = found("overlap/speedup", method="closed_form", **trace)
    assert modelled == pytest.approx(traced[0], rel=0.01)


def test_equal_totals_are_not_enough_if_phases_differ():
    equal, unequal = (found("overlap/speedup", method="simulated", layer=name)
                      for name in ("equal_phases", "fp8_dispatch"))  # fmt: skip
    assert 1.98 < equal < 2
    # In turns a phase takes as long as the longer of what is side by side: 3 + 3 + 4 + 4 of 24.
    assert unequal == pytest.approx(24 / 14, rel=0.01)


def test_grid_is_best_where_communication_and_compute_are_equal():
    ratios = ARGUMENTS["grid"]["communication_over_compute"]
    values = [found("overlap/speedup", method="closed_form", communication_over_compute=ratio,
                    exposed=0.0) for ratio in ratios]  # fmt: skip
    peak = ratios.index(1)
    assert all(low < high for low, high in pairwise(values[: peak + 1]))
    assert all(low > high for low, high in pairwise(values[peak:]))


def test_the_ledger_has_these_verdicts(verdicts_of):
    assert verdicts_of("overlap", overlap(**ARGUMENTS)) == {
        "ds.overlap": "reproduced",
        "ds.overlap_transfers": "contradicted",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": ARGUMENTS["grid"] | {"exposed": [2]}}, "grid.exposed.0: found 2"),
        ({"layers": {"odd": {"attention": 1}}}, "layers.odd.dispatch: required key is missing"),
        ({"traces": {"t": ARGUMENTS["traces"]["h800_training"] | {"spam": 1}}}, "unknown key"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(UserError, match=message):
        overlap(**ARGUMENTS | change)
