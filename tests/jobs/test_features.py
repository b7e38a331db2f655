"""From models that differ in one part to tables, figures and verdicts on that part."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from harness.config.catalog import load_catalog
from harness.config.claims_schema import load_claims
from harness.files import write_json
from harness.jobs import run_job
from harness.jobs.collect import collect
from harness.jobs.context import Context
from harness.records.store import load_records
from harness.reporting.claims import judge
from harness.reporting.figures import write_figures
from harness.reporting.results import Results
from harness.reporting.tables import make_tables

CONFIG = Path(__file__).parents[2] / "config"
COMMON = {
    "datasets": ["standard_library_bytes"],
    "training": {"steps": 6, "batch_size": 2, "sequence_length": 64, "log_interval": 2,
                 "evaluation_interval": 6, "evaluation_batches": 1},
    "seeds": {"tuning": [9], "reporting": [0, 1]},
}  # fmt: skip
SCALE = {
    "description": "parts of models in a test",
    "device": "cpu",
    "runs_per_job": 8,
    "experiments": {
        "expert_balance": COMMON,
        "fp8_training": COMMON,
        "multi_token_prediction": COMMON | {
            "evaluation": {
                "tasks": ["heldout_completion"], "documents": 2,
                "speculation": {"prompts": 1, "prompt_tokens": 8, "new_tokens": 8, "rounds": 1},
            }
        },
        "decode_speed": {"arguments": {"contexts": [16], "batch": 1, "rounds": 2}},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    """A folder in which all jobs have run in this process."""
    folder = tmp_path_factory.mktemp("features")
    config = Path(shutil.copytree(CONFIG, folder / "config"))
    (config / "scales" / "micro.yaml").write_text(yaml.safe_dump(SCALE))
    context = Context(load_catalog(config, "micro"), folder / "results")
    torch.set_num_threads(1)
    for job in context.jobs.values():
        write_json(context.output(job), run_job(job, context))
    collect(context)
    return context


@pytest.fixture(scope="module")
def results(context) -> Results:
    return Results(context.scale_folder)


def test_one_rate_for_all_needs_no_tuning(context):
    stages = {job.stage for job in context.jobs.values()}
    assert "train" in stages
    assert "tune" not in stages
    rates = load_records(context.scale_folder)["learning_rate"].dropna()
    assert set(rates) == {context.catalog.experiments["fp8_training"].learning_rate}


def test_members_have_the_names_of_the_experiment(results):
    [sweep] = [sweep for sweep in results.sweeps() if sweep.experiment == "expert_balance"]
    assert sweep.members == ("none", "free", "auxiliary", "sequence", "batch")
    assert (sweep.fixed, sweep.baseline) == ("adamw", "auxiliary")
    assert all(sweep.estimate("test/loss", name).count == 2 for name in sweep.members)
    difference = sweep.difference("test/loss", "free", "auxiliary")
    free, other = (sweep.final("test/loss", name) for name in ("free", "auxiliary"))
    assert difference.mean == pytest.approx(sum(free[s] - other[s] for s in (0, 1)) / 2)


def test_a_relative_difference_is_that_of_each_seed(results):
    [sweep] = [sweep for sweep in results.sweeps() if sweep.experiment == "fp8_training"]
    found = sweep.relative_difference("test/loss", "fp8", "bfloat16")
    fp8, reference = (sweep.final("test/loss", name) for name in ("fp8", "bfloat16"))
    assert found.mean == pytest.approx(sum(fp8[s] / reference[s] - 1 for s in (0, 1)) / 2)
    assert found.mean != 0


def test_only_checkpoints_with_prediction_speculate(results):
    rows = results.records[results.records["metric"].str.startswith("mtp/")]
    assert set(rows["model"]) == {"decoder_tiny_mtp"}
    assert rows["value"].between(0, 10).all()
    acceptance = rows[rows["metric"] == "mtp/acceptance"]
    # Two seeds, greedy and sampled, one draft.
    assert len(acceptance) == 4
    assert acceptance["value"].between(0, 1).all()


def test_tables_say_what_models_cost_and_how_they_behave(results):
    tables = {table.name.partition(".adamw")[0]: table.numbers for table in make_tables(results)}
    load = tables["features.expert_balance"].set_index("model")["train/moe/max_violation"]
    assert (load >= 0).all()
    prediction = tables["features.multi_token_prediction"].set_index("model")
    assert prediction.loc["mtp", "parameters"] > prediction.loc["plain", "parameters"]
    assert pd.isna(prediction.loc["plain", "mtp/speedup"])
    assert set(tables["acceptance.multi_token_prediction"]["mode"]) == {"greedy", "sampled"}
    decoding = tables["decode_speed.decode_speed"].set_index("attention")
    # Keys and values of 4, 2 and 1 heads of 16 in two layers of float32; a latent of 64 and 8.
    expected = {"mha": 1024, "gqa": 512, "mqa": 256, "mla_absorbed": 576}
    found = decoding.loc[list(expected), "cache_bytes_per_token"]
    assert found.to_dict() == expected


def test_figures_show_the_parts(context, tmp_path):
    names = {path.name.split(".")[0] for path in write_figures(context.scale_folder, tmp_path)}
    assert {"relative_loss", "expert_load", "speculation", "decode_speed"} <= names


def test_verdicts_wait_for_the_published_scale_or_do_not(results):
    claims = load_claims(CONFIG / "claims.yaml")

    def verdict(name: str) -> tuple[str, str]:
        [row] = judge(name, claims[name], results)
        return row["verdict"], row["evidence"]

    assert verdict("ds.mtp.accept")[0] == "not run"
    bound, evidence = verdict("ds.fp8.loss")
    assert bound != "not run"
    assert evidence.startswith("fp8 / bfloat16 - 1, test/loss")
    assert verdict("ds.moe.balance_load")[0] != "not run"
