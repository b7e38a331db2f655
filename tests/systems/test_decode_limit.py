"""The limit of expert-parallel decoding against its published numbers."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_values import assert_told_apart, only

from harness.config.yaml_file import read_yaml
from harness.errors import UserError
from harness.systems.decode_limit import Deployment, decode_limit, limits, time_per_token
from paper_figures import decode_limit as figure

CONFIG = Path(__file__).parents[2] / "config"
ARGUMENTS = read_yaml(CONFIG / "experiments" / "decode_limit.yaml")["arguments"]
BASE = ARGUMENTS["cases"]["infiniband"]
SLOWER = ("latency", "hidden_size", "layers", "tokens", "experts", "dispatch_bytes",
          "combine_bytes")  # fmt: skip


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return decode_limit(**ARGUMENTS)


def deployments() -> st.SearchStrategy[Deployment]:
    positive = st.floats(0.1, 1000)
    number = st.integers(1, 10_000)
    return st.builds(Deployment, bandwidth=positive, latency=st.floats(0, 100), hidden_size=number,
                     layers=number, tokens=number, experts=number, dispatch_bytes=positive,
                     combine_bytes=positive)  # fmt: skip


def test_no_two_records_are_told_apart_by_nothing(records):
    assert_told_apart(records)


@pytest.mark.parametrize(
    ("case", "microseconds", "milliseconds", "tokens"),
    [
        ("infiniband", 120.96, 14.76, 67.75),
        ("nvl72", 6.72, 0.82, 1219.5),
        ("hidden_7168", 123.86, 15.11, 66.2),
        ("hidden_7168_40_gb_per_s", 154.83, 18.89, 52.9),
        ("hidden_7168_with_scales", 125.15, 15.27, 65.5),
        ("moe_layers_only", 120.96, 14.03, 71.3),
        ("with_latency", 120.96, 14.76 + 0.90, 63.9),
    ],
)
def test_reference_limits(records, case, microseconds, milliseconds, tokens):
    of = {"case": case, "method": "closed_form"}
    # All references are rounded or cut to the digits that they have here.
    assert only(records, "limit/communication", **of) == pytest.approx(microseconds, abs=0.005)
    assert only(records, "limit/time_per_token", **of) == pytest.approx(milliseconds, abs=0.005)
    assert only(records, "limit/tokens_per_second", **of) == pytest.approx(tokens, rel=0.001)


def test_printed_speeds_are_cut_off_not_rounded(records):
    for case, printed, unit in (("infiniband", 67, 1), ("nvl72", 1200, 100)):
        found = only(records, "limit/tokens_per_second", case=case, method="closed_form")
        assert found // unit * unit == printed
    assert round(only(records, "limit/tokens_per_second", case="infiniband",
                      method="closed_form")) == 68  # fmt: skip


@given(deployments(), st.sampled_from(SLOWER), st.integers(1, 5))
def test_more_of_anything_but_bandwidth_is_slower(deployment, name, more):
    larger = deployment.model_copy(update={name: getattr(deployment, name) + more})
    assert time_per_token(larger) > time_per_token(deployment)


@given(deployments(), st.sampled_from(["bandwidth", "hidden_size", "tokens", "experts", "layers"]))
def test_without_latency_time_is_proportional_or_inverse(deployment, name):
    deployment = deployment.model_copy(update={"latency": 0.0})
    twice = deployment.model_copy(update={name: 2 * getattr(deployment, name)})
    factor = 0.5 if name == "bandwidth" else 2
    assert time_per_token(twice) == pytest.approx(factor * time_per_token(deployment))


@given(deployments())
def test_units_agree_with_each_other(deployment):
    limit = limits(deployment)
    assert limit["tokens_per_second"] * limit["time_per_token"] == pytest.approx(1e3)
    two_micro_batches = 2 * (limit["communication"] + 2 * deployment.latency)
    assert limit["time_per_token"] * 1e3 == pytest.approx(deployment.layers * two_micro_batches)


def test_sweeps_pass_through_the_case_that_they_start_from(records):
    expected = only(records, "limit/tokens_per_second", case="infiniband", method="closed_form")
    for name in ARGUMENTS["sensitivity"]:
        labels = {"base": "infiniband", "input": name, "input_value": float(BASE[name])}
        assert only(records, "limit/tokens_per_second", **labels) == expected


def test_transfers_at_their_printed_bandwidth_take_what_was_measured(records):
    ratios = {(r["labels"]["operation"], r["labels"]["ranks"]): r["value"] for r in records
              if r["metric"] == "transfer/over_measured"
              and r["labels"]["bandwidth"] == "printed"}  # fmt: skip
    assert len(ratios) == 12
    # Bandwidths are printed to a unit, and those of dispatch count scales that the bytes leave out.
    assert all(0.965 < ratio < 1.025 for ratio in ratios.values())


def test_on_many_ranks_transfers_are_well_above_the_time_at_line_rate(records):
    of = {"ranks": 256, "bandwidth": "line_rate"}
    for operation, bandwidth in (("dispatch", 37.8), ("combine", 40.8)):
        ratio = only(records, "transfer/over_measured", operation=operation, **of)
        assert 50 * ratio == pytest.approx(bandwidth, abs=0.05)


def test_service_is_three_times_slower_than_the_limit(records):
    ratios = [only(records, "limit/over_production", service=name) for name in ("upper", "lower")]
    assert ratios == pytest.approx([67.76 / 22, 67.76 / 20], rel=0.001)


def test_the_ledger_has_these_verdicts(records, verdicts_of):
    assert verdicts_of("decode_limit", records) == {
        f"ds.limit.{network}_{quantity}": "reproduced"
        for network in ("infiniband", "nvl72")
        for quantity in ("communication", "time_per_token", "tokens")
    }


def test_figure_marks_the_published_cases_where_they_belong(records, results_of):
    [(_, drawn)] = figure.draw(results_of("decode_limit", records)).values()
    marks = {}
    for ax in drawn.axes:
        [printed] = [line for line in ax.lines if line.get_label() == "printed"]
        marks[ax.get_xlabel()] = sorted(zip(*printed.get_data(), strict=True))
    assert len(marks) == len(ARGUMENTS["sensitivity"])
    assert marks["bandwidth (GB/s)"] == [(50, 67), (900, 1200)]
    assert marks["layers"] == [(61, 67)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "infinband"}, r"base: found case 'infinband' \(did you mean 'infiniband'\?\)"),
        ({"cases": {"infiniband": {}}}, "cases.infiniband.bandwidth: required key is missing"),
        ({"cases": {"infiniband": BASE, "x": {"bandwith": 1}}}, "cases.x.* mean 'bandwidth'"),
        ({"sensitivity": {"layers": [0]}}, "sensitivity.layers.layers: found 0"),
        ({"sensitivity": {"layer": [1]}}, "sensitivity.layer: unknown key 'layer'"),
        ({"printed": {"nvl": {"communication": 1}}}, r"case 'nvl' \(did you mean 'nvl72'\?\)"),
        ({"printed": {"nvl72": {"speed": 1}}}, "printed.nvl72.speed"),
        ({"production": {"case": "h", "tokens_per_second": {}}}, "found case 'h'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(UserError, match=message):
        decode_limit(**ARGUMENTS | change)
