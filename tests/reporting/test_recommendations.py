"""Recommendations for hardware beside the records that bear on them."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness.config.recommendations_schema import Recommendation, load_recommendations
from harness.config.yaml_file import read_yaml
from harness.errors import UserError
from harness.records.store import RECORD_COLUMNS, RUN_COLUMNS, write_table
from harness.reporting.recommendations import evidence_rows, write_recommendations
from harness.reporting.results import Results

CONFIG = Path(__file__).parents[2] / "config"
RECOMMENDATIONS = CONFIG / "recommendations.yaml"
ENTRY = {"recommendation": "Do it.", "sections": ["5.2.2"]}
NUMBER = {"experiment": "made_up", "metric": "a/number", "says": "a number"}


@pytest.fixture
def results(tmp_path) -> Results:
    """Numbers by two labels and three seeds, timed in rounds, and a sweep's last losses."""
    rows = [
        {"metric": "a/number", "value": base + seed, "unit": "GB/s", "seed": seed,
         "labels": {"way": way, "size": 4}}
        for way, base in (("one", 10.0), ("other", 20.0)) for seed in (0, 1, 2)
    ]  # fmt: skip
    rows += [
        {"metric": "a/time", "value": value, "unit": "s", "labels": {"round": round_}}
        for round_, value in enumerate([1.0, 2.0, 30.0])
    ]
    rows += [
        {"metric": "a/count", "value": 3.0, "unit": "1", "model": model, "labels": {}}
        for model in ("small", "large")
    ]
    common = {"experiment": "made_up", "run_id": "x", "role": "compute"}
    records = [common | row | {"labels": json.dumps(row["labels"])} for row in rows]
    runs = []
    for model, loss in (("fp8", 2.02), ("bfloat16", 2.0)):
        for seed in (0, 1):
            run = {"experiment": "sweep", "run_id": f"{model}.{seed}", "role": "reporting",
                   "model": model, "dataset": "text", "optimizer": "adamw"}  # fmt: skip
            run["seed"] = seed
            runs.append(run | {"status": "completed", "spec": "{}", "environment": "{}"})
            for step, more in ((10, 1.0), (20, 0.0)):
                records.append(run | {"metric": "test/loss", "value": loss + more, "unit": "nats",
                                      "step": step, "labels": "{}"})  # fmt: skip
    write_table(pd.DataFrame(records), RECORD_COLUMNS, tmp_path / "records.parquet")
    write_table(pd.DataFrame(runs), RUN_COLUMNS, tmp_path / "runs.parquet")
    models = {name: name for name in ("fp8", "bfloat16", "never_run")}
    sweep = {"kind": "train", "compare": "models", "models": models}
    plan = {"scale": "smoke", "experiments": {"made_up": {"kind": "compute"}, "sweep": sweep},
            "elsewhere": {"cluster": {"command": "run it", "cost": "a day"}}}  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    return Results(tmp_path)


def rows_of(results: Results, *evidence: dict) -> list[dict]:
    entry = Recommendation.model_validate(ENTRY | {"evidence": list(evidence)})
    return list(evidence_rows(7, entry, results, "file"))


def test_the_file_has_all_sixteen_and_every_experiment_exists():
    entries = load_recommendations(RECOMMENDATIONS)
    assert list(entries) == list(range(1, 17))
    assert all(entry.evidence or entry.nothing for entry in entries.values())


def test_a_number_is_the_mean_over_seeds_of_the_last_and_the_median_over_rounds(results):
    [row] = rows_of(results, NUMBER | {"where": {"way": "other"}})
    assert (row["value"], row["unit"], row["sections"]) == (21.0, "GB/s", "5.2.2")
    assert row["low"] < 21 < row["high"]
    [row] = rows_of(results, NUMBER | {"metric": "a/time"})
    assert row["value"] == 2
    [row] = rows_of(results, NUMBER | {"experiment": "sweep", "metric": "test/loss",
                                       "where": {"model": "fp8"}})  # fmt: skip
    assert row["value"] == pytest.approx(2.02)


def test_a_ratio_is_that_of_two_members_seed_by_seed(results):
    compared = {"experiment": "sweep", "metric": "test/loss", "compare": ["fp8", "bfloat16"]}
    [row] = rows_of(results, NUMBER | compared)
    assert row["value"] == pytest.approx(0.01)
    with pytest.raises(UserError, match=r"compare: found 'fp9' \(did you mean 'fp8'\?\)"):
        rows_of(results, NUMBER | compared | {"compare": ["fp9", "bfloat16"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"file: 7.evidence.0.where: several numbers fit, way is one and other"),
        ({"metric": "a/count"}, "several numbers fit, model is large and small"),
    ],
)
def test_several_numbers_where_one_is_meant_are_refused(results, change, message):
    with pytest.raises(UserError, match=message):
        rows_of(results, NUMBER | change)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"experiment": "cluster"}, "not run at scale smoke: run it (a day)"),
        ({"experiment": "elsewhere"}, "not run at scale smoke"),
        ({"metric": "a/nothing"}, "no record of a/nothing"),
        ({"where": {"way": "third"}}, "no record with way third at this scale, only one, other"),
        ({"where": {"weigh": 1}}, "no record with weigh 1 at this scale, only without"),
        ({"experiment": "sweep", "compare": ["fp8", "bfloat16"]},
         "no completed runs with a/number"),
        ({"experiment": "sweep", "metric": "test/loss", "compare": ["never_run", "bfloat16"]},
         "no runs of never_run"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_and_has_no_number(results, change, note):
    [row] = rows_of(results, NUMBER | change)
    assert row["note"] == note
    assert "value" not in row


def test_the_table_names_all_and_the_reason_where_there_is_nothing(results, tmp_path):
    path, output = tmp_path / "config" / "recommendations.yaml", tmp_path / "out.csv"
    (path.parent / "experiments").mkdir(parents=True)
    (path.parent / "experiments" / "made_up.yaml").touch()
    path.write_text(yaml.safe_dump({
        1: ENTRY | {"evidence": [NUMBER | {"where": {"way": "one"}}]},
        2: ENTRY | {"nothing": "it takes a cluster"},
    }))  # fmt: skip
    write_recommendations(results.folder, path, output)
    table = pd.read_csv(output).set_index("number")
    assert table["value"][1] == 11
    assert pd.isna(table["value"][2])
    assert table["note"][2] == "it takes a cluster"


def changed(number: int, **change) -> dict:
    return {1: ENTRY | {"nothing": "why"}, number: ENTRY | change}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(3, nothing="why"), "found the numbers 1, 3, expected 1 to 2 in order"),
        (changed(2), "2: needs either `evidence` or `nothing`"),
        (changed(2, nothing="why", evidence=[NUMBER]), "2: needs either"),
        (changed(2, evidence=[NUMBER | {"metrik": 1}]),
         r"2.evidence.0: unknown key 'metrik' \(did you mean 'metric'\?\)"),
        (changed(2, evidence=[NUMBER | {"experiment": "incats"}]),
         r"2.evidence.0.experiment: found 'incats' \(did you mean 'incast'\?\)"),
        (changed(2, evidence=[NUMBER | {"where": {"a": 1}, "compare": ["a", "b"]}]),
         "2.evidence.0: has both `where` and `compare`"),
        (changed(2, nothing="why", sections=["five"]),
         r"2.sections: found 'five', expected a number like '5.2.2'"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_named(tmp_path, data, message):
    path = tmp_path / "recommendations.yaml"
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "incast.yaml").touch()
    path.write_text(yaml.safe_dump(data))
    assert read_yaml(path)
    with pytest.raises(UserError, match=message):
        load_recommendations(path)
