"""What is counted from published configurations against published numbers and brute force."""

import json
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_values import assert_told_apart, only

from harness.config.base import validate
from harness.config.catalog import load_models
from harness.config.claims_schema import load_claims
from harness.config.decoder_schema import MixtureOfExperts
from harness.config.yaml_file import read_yaml
from harness.errors import UserError
from harness.records.store import RECORD_COLUMNS, RUN_COLUMNS, write_table
from harness.reporting.claims import judge
from harness.reporting.results import Results
from harness.systems.model_costs import model_costs
from harness.systems.node_routing import Routing, expected_groups, simulated_groups
from paper_figures import key_value_cache, training_compute

CONFIG = Path(__file__).parents[2] / "config"
MODELS = load_models(CONFIG / "models.yaml")
EXPERIMENT = read_yaml(CONFIG / "experiments" / "model_costs.yaml")
ARGUMENTS = EXPERIMENT["arguments"]


@pytest.fixture(scope="module")
def records() -> list[dict]:
    models = {name: MODELS[name].model_dump() for name in EXPERIMENT["models"]}
    return model_costs(models=models, **ARGUMENTS)


def test_no_two_records_are_told_apart_by_nothing(records):
    assert_told_apart(records)


@pytest.mark.parametrize(
    ("model", "content", "form", "expected"),
    [
        ("deepseek_v3", "latent", "bfloat16", 70_272),
        ("qwen2_5_72b", "heads", "bfloat16", 327_680),
        ("llama3_1_405b", "heads", "bfloat16", 516_096),
        ("deepseek_67b", "heads", "bfloat16", 389_120),
        ("deepseek_v2", "latent", "bfloat16", 69_120),
        ("deepseek_v2", "latent", "6_bit", 25_920),
        ("deepseek_v3", "heads", "bfloat16", 4_997_120),
        ("deepseek_v3", "multi_head", "bfloat16", 3_997_696),
        ("deepseek_v3", "latent", "fp8", 656 * 61),
    ],
)
def test_bytes_per_token_are_the_published_ones(records, model, content, form, expected):
    labels = {"content": content, "format": form, "method": "closed_form"}
    assert only(records, "cache/bytes_per_token", model=model, **labels) == expected


def test_bytes_counted_from_tensors_equal_the_closed_form(records):
    counted = [r for r in records if r["metric"] == "cache/bytes_per_token"
               and r["labels"]["method"] == "counted"]  # fmt: skip
    # What is served by every model, and the expanded form of the three latent ones.
    assert len(counted) == len(EXPERIMENT["models"]) + 3
    for record in counted:
        labels = record["labels"] | {"method": "closed_form"}
        assert record["value"] == only(records, record["metric"], model=record["model"], **labels)


def test_parameters_counted_from_tensors_equal_the_closed_form(records):
    for model in EXPERIMENT["models"]:
        closed, counted = (
            only(records, "parameters/total", model=model, method=method)
            for method in ("closed_form", "counted")
        )
        assert counted == closed


def test_operations_agree_with_what_the_printed_speed_comes_to(records):
    # 385 and 432 TFLOPS are printed to a unit, the closed form is 0.3 % above both.
    for attention, speed in (("causal", 249.7), ("full", 280.2)):
        of = {"attention": attention, "prediction": "left out"}
        metric, model = "training/flops_per_token", "deepseek_v3"
        implied = only(records, metric, model=model, method="throughput", **of)
        assert implied == pytest.approx(speed, abs=0.05)
        closed = only(records, metric, model=model, method="closed_form", **of)
        assert closed == pytest.approx(implied, rel=0.005)


@pytest.mark.parametrize(
    ("model", "over", "method", "factor"),
    [
        ("llama3_1_405b", "deepseek_v3", "printed", 9.79),
        ("qwen2_5_72b", "deepseek_v3", "printed", 1.58),
        ("qwen2_5_72b", "deepseek_v3", "closed_form", 1.78),
    ],
)
def test_ratios_of_training_operations(records, model, over, method, factor):
    ratio = only(records, "training/ratio", model=model, over=over, method=method)
    assert ratio == pytest.approx(factor, abs=0.005)


def test_unlimited_routing_of_deepseek_v3_touches_5_29_nodes_and_limited_at_most_4(records):
    of = {"metric": "routing/nodes", "model": "deepseek_v3"}
    closed = only(records, **of, limit="none", statistic="mean", method="closed_form")
    assert closed == pytest.approx(5.29, abs=0.005)
    simulated = only(records, **of, limit="none", statistic="mean", method="simulated")
    # Four standard errors of 20,000 draws with a deviation of 0.9.
    assert simulated == pytest.approx(closed, abs=4 * 0.9 / 20000**0.5)
    assert only(records, **of, limit="none", statistic="max", method="closed_form") == 8
    assert only(records, **of, limit="groups", statistic="max", method="simulated") == 4


@given(groups=st.integers(1, 4), size=st.integers(1, 3), data=st.data())
def test_expected_groups_are_the_mean_over_all_choices(groups, size, data):
    chosen = data.draw(st.integers(1, groups * size))
    choices = combinations(range(groups * size), chosen)
    touched = [len({expert // size for expert in choice}) for choice in choices]
    assert expected_groups(groups * size, groups, chosen) == pytest.approx(np.mean(touched))


@given(groups=st.integers(1, 5), size=st.integers(2, 4), data=st.data())
def test_limited_tokens_stay_within_the_open_groups(groups, size, data):
    limit = data.draw(st.integers(1, groups))
    chosen = data.draw(st.integers(1, limit * size))
    moe = validate(
        MixtureOfExperts,
        {"moe_intermediate_size": 1, "n_routed_experts": groups * size, "n_group": groups,
         "topk_group": limit, "num_experts_per_tok": chosen},
        "test",
    )  # fmt: skip
    touched = simulated_groups(moe, limit, validate(Routing, {"draws": 50, "seed": 1}, "test"))
    assert touched.max() <= min(limit, chosen)
    assert touched.min() >= np.ceil(chosen / size)


VERDICTS = {
    "ds.kv.deepseek_v3": "reproduced",
    "ds.kv.qwen2_5_72b": "reproduced",
    "ds.kv.llama3_1_405b": "reproduced",
    "ds.kv.ratio_qwen": "reproduced",
    "ds.kv.ratio_llama": "contradicted",
    "ds.kv.share_of_qwen": "reproduced",
    "ds.kv.share_of_llama": "reproduced",
    "ds.kv.flashmla": "reproduced",
    "ds.kv.v2_saving": "reproduced",
    "ds.kv.v2_saving_bf16": "contradicted",
    "ds.kv.v2_lite_latent": "reproduced",
    "ds.kv.v2_lite_multi_head": "reproduced",
    "ds.flops.deepseek_v2": "reproduced",
    "ds.flops.deepseek_v3": "reproduced",
    "ds.flops.qwen_72b": "contradicted",
    "ds.flops.llama_405b": "contradicted",
    "ds.cost.llama": "reproduced",
    "ds.cost.qwen": "contradicted",
    "ds.moe.active": "reproduced",
    "ds.moe.active_with_embedding": "contradicted",
    "ds.moe.active_v2": "reproduced",
    "ds.moe.total": "reproduced",
    "ds.moe.total_v2": "reproduced",
    "ds.moe.prediction": "contradicted",
    "ds.moe.nodes": "reproduced",
}


@pytest.fixture(scope="module")
def results(records, tmp_path_factory) -> Results:
    folder = tmp_path_factory.mktemp("records")
    frame = pd.DataFrame([
        record | {"experiment": "model_costs", "run_id": "model_costs", "role": "compute",
                  "labels": json.dumps(record["labels"], sort_keys=True)}
        for record in records
    ])  # fmt: skip
    write_table(frame, RECORD_COLUMNS, folder / "records.parquet")
    write_table(pd.DataFrame(), RUN_COLUMNS, folder / "runs.parquet")
    plan = {"scale": "smoke", "experiments": {"model_costs": {}}, "elsewhere": {}}
    (folder / "plan.json").write_text(json.dumps(plan))
    return Results(folder)


def test_the_ledger_has_these_verdicts(results):
    claims = load_claims(CONFIG / "claims.yaml")
    about = {name for name, claim in claims.items() if "model_costs" in claim.experiments}
    found = {name: [row["verdict"] for row in judge(name, claims[name], results)] for name in about}
    assert found == {name: [verdict] for name, verdict in VERDICTS.items()}


@pytest.mark.parametrize("module", [key_value_cache, training_compute])
def test_figures_mark_what_was_printed(results, module):
    [(experiment, figure)] = module.draw(results).values()
    assert experiment == "model_costs"
    [printed] = [line for line in figure.axes[0].lines if line.get_label() == "printed"]
    table = "cache" if module is key_value_cache else "training"
    assert sorted(printed.get_xdata()) == sorted(ARGUMENTS[table]["printed"].values())
    plt.close(figure)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {"tiny": MODELS["decoder_tiny"].model_dump()}}, "tiny.vocab_size: found none"),
        ({"models": {"vit": {"family": "vit"}}}, "models: vit"),
        ({"cache": {"printed": {"deepseek_v4": 1}}}, "cache: found model 'deepseek_v4'"),
        ({"training": {"sequence_length": 0}}, "training.sequence_length: found 0"),
        ({"training": {"sequence_length": 1, "ratio": []}}, "unknown key 'ratio'"),
        ({"routing": {"draws": 1}}, "routing.seed: required key is missing"),
    ],
)
def test_bad_arguments_are_named(change, message):
    good = {"models": {"deepseek_v3": MODELS["deepseek_v3"]}, "cache": {},
            "training": {"sequence_length": 8}, "routing": {"draws": 1, "seed": 0}}  # fmt: skip
    with pytest.raises(UserError, match=message):
        model_costs(**good | change)
