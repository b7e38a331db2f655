"""A published training step against itself and the model's configuration."""

from copy import deepcopy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_values import assert_told_apart, only

from harness.config.catalog import load_models
from harness.config.claims_schema import load_claims
from harness.config.yaml_file import read_yaml
from harness.errors import UserError
from harness.systems.training_step import tflops_per_device, training_step
from paper_figures import training_step as figure

CONFIG = Path(__file__).parents[2] / "config"
EXPERIMENT = read_yaml(CONFIG / "experiments" / "training_step.yaml")
ARGUMENTS = EXPERIMENT["arguments"]
MODELS = load_models(CONFIG / "models.yaml")
GIVEN = {"models": {name: MODELS[name] for name in EXPERIMENT["models"]}} | ARGUMENTS


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return training_step(**GIVEN)


def test_no_two_records_are_told_apart_by_nothing(records):
    assert_told_apart(records)


@pytest.mark.parametrize(
    ("metric", "labels", "expected", "tolerance"),
    [
        # Printed with three decimals; 15,360 sequences of 4,096 tokens give them back.
        ("time_per_step", {"network": "mpft", "method": "tokens_per_day"}, 19.926, 0.0005),
        ("time_per_step", {"network": "mrft", "method": "tokens_per_day"}, 19.946, 0.001),
        ("time_per_step", {"network": "mpft", "method": "phases"}, 19.90, 1e-9),
        ("time_per_step", {"network": "mrft", "method": "phases"}, 19.94, 1e-9),
        ("bubble_share", {"network": "mpft"}, 0.103, 0.0005),
        # 250.45 and 281.15 GFLOP per token, 272.80 B tokens a day, 2,048 devices.
        ("tflops_causal", {"network": "mpft", "prediction": "left out"}, 386.1, 0.05),
        ("tflops_full", {"network": "mpft", "prediction": "left out"}, 433.45, 0.05),
        ("mfu_causal", {"network": "mpft", "method": "printed_tflops"}, 100 * 385 / 989.4, 1e-9),
        ("mfu_full", {"network": "mrft", "method": "printed_tflops"}, 100 * 432 / 989.4, 1e-9),
    ],
)
def test_reference_values(records, metric, labels, expected, tolerance):
    assert only(records, f"step/{metric}", **labels) == pytest.approx(expected, abs=tolerance)


def test_every_derived_number_is_within_half_a_percent_if_prediction_is_left_out(records):
    differences = [abs(r["value"]) for r in records if r["metric"] == "step/difference"
                   and r["labels"].get("prediction") != "counted"]  # fmt: skip
    assert len(differences) == 2 * 9
    assert max(differences) < 0.005


def test_printed_rates_do_not_count_multi_token_prediction(records):
    differences = [r["value"] for r in records if r["metric"] == "step/difference"
                   and r["labels"].get("prediction") == "counted"]  # fmt: skip
    assert min(differences) > 0.035


def test_networks_differ_by_a_tenth_of_a_percent(records):
    differences = [abs(r["value"]) for r in records if r["metric"] == "step/between_networks"]
    assert max(differences) == pytest.approx(0.00114, abs=0.00001)


@given(st.floats(1e9, 1e13), st.floats(1e9, 1e13), st.integers(1, 100_000))
def test_rates_of_all_devices_add_up_to_the_operations_of_a_day(flops, tokens, devices):
    rate = tflops_per_device(flops, tokens, devices)
    assert rate * devices * 1e12 * 24 * 3600 == pytest.approx(flops * tokens)


def test_the_ledger_has_these_verdicts(records, verdicts_of):
    verdicts = verdicts_of("training_step", records)
    quantities = ("step_time", "phases", "mfu_causal", "mfu_full", "tflops_causal", "tflops_full")
    assert verdicts == {f"ds.table4.{column}{quantity}": "reproduced"
                        for column in ("", "mrft_") for quantity in quantities}  # fmt: skip


def test_figure_lays_the_phases_end_to_end_beside_the_printed_time(records, results_of):
    [(experiment, drawn)] = figure.draw(results_of("training_step", records)).values()
    assert experiment == "training_step"
    top = drawn.axes[0]
    for bars, ticks, sum_and_time in zip(
        top.containers, top.lines, ((19.90, 19.926), (19.94, 19.946)), strict=True
    ):
        *phases, whole = ((bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars)
        assert len(phases) == 6
        ends = [end for _, end in phases]
        assert [start for start, _ in phases] == pytest.approx([0, *ends[:-1]])
        assert whole == pytest.approx((0, ends[-1]))
        assert (whole[1], ticks.get_xdata()[0]) == pytest.approx(sum_and_time)
    plt.close(drawn)


def test_figure_has_all_numbers_within_the_band_but_those_that_count_prediction(
    records, results_of
):
    [(_, drawn)] = figure.draw(results_of("training_step", records)).values()
    bottom = drawn.axes[1]
    [band] = bottom.patches
    low, high = band.get_x(), band.get_x() + band.get_width()
    assert (low, high) == pytest.approx((-0.5, 0.5))
    for line in bottom.lines:
        inside = [low < value < high for value in line.get_xdata()]
        match line.get_label().split(", "):
            case ["MPFT" | "MRFT"]:
                assert inside == [True] * 9
            case ["MPFT" | "MRFT", "with multi-token prediction"]:
                assert inside == [False] * 4
    assert len(bottom.get_legend_handles_labels()[1]) == 4
    names = [text.get_text() for text in bottom.get_yticklabels()]
    # (19.90 / 19.926 - 1) in per cent.
    [mpft] = [line for line in bottom.lines if line.get_label() == "MPFT"]
    heights = [round(height) for height in mpft.get_ydata()]
    place = heights.index(names.index("time per step, from its phases"))
    assert mpft.get_xdata()[place] == pytest.approx(-0.13048, abs=1e-5)
    plt.close(drawn)


def test_band_of_the_figure_is_that_of_the_ledger():
    claims = load_claims(CONFIG / "claims.yaml")
    about = [claim for name, claim in claims.items() if name.startswith("ds.table4.")]
    assert {claim.tolerance for claim in about} == {figure.TOLERANCE}


def test_other_records_have_no_such_figure(results_of, records):
    assert figure.draw(results_of("training_step", records[:1])) == {}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("run", "model"), "deepseek_v2", r"run.model: found 'deepseek_v2' \(did you mean"),
        (("run", "devices"), 0, "run.devices: found 0"),
        (("networks", "mpft", "phases"), {"buble": 1}, r"found no 'bubble' \(did you mean 'buble'"),
        (("networks", "mpft", "tflops"), {"causal": 385}, "mpft.tflops.full: required key"),
        (("networks",), {}, "networks: found {}, expected"),
        (("models",), {"deepseek_v3": {"family": "vit"}}, "models: deepseek_v3.family"),
    ],
)
def test_bad_arguments_are_named(path, value, message):
    changed = deepcopy(GIVEN)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(UserError, match=message):
        training_step(**changed)
