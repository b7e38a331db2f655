import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from harness.config.base import validate
from harness.config.claims_schema import Claim, load_claims
from harness.errors import UserError
from harness.records.statistics import Estimate
from harness.records.store import RECORD_COLUMNS, RUN_COLUMNS, write_table
from harness.reporting.claims import COLUMNS, VERDICTS, judge, verdict_of, write_claims
from harness.reporting.results import Results

LEDGER = Path(__file__).parents[2] / "config" / "claims.yaml"
BASE = {"source": "paper, table 1", "claim": "It is so.", "reported": "1"}
VALUE = {"experiment": "language_optimizers", "metric": "test/loss"}
LOWER = {**VALUE, "compare": ["root", "muon"], "claimed": "first_lower"}


def claim(**fields) -> Claim:
    return validate(Claim, BASE | fields, "test")


def estimate(mean: float, half: float = 0.0) -> Estimate:
    return Estimate(mean, mean - half, mean + half, 3)


@pytest.mark.parametrize(
    ("mean", "half", "scale", "verdict"),
    [
        (-0.2, 0.1, "smoke", "direction reproduced"),
        (-0.2, 0.1, "paper", "reproduced"),
        (-0.2, 0.3, "paper", "unresolved"),
        (0.2, 0.1, "smoke", "contradicted"),
        (-0.2, float("nan"), "smoke", "unresolved"),
        (-0.2, 0.0, "smoke", "unresolved"),
    ],
)
def test_orderings_are_judged_by_the_interval(mean, half, scale, verdict):
    ordering = claim(rule="ordering", scale="paper", evidence=LOWER)
    assert verdict_of(ordering, estimate(mean, half), scale) == verdict
    mirrored = claim(rule="ordering", scale="paper", evidence=LOWER | {"claimed": "first_higher"})
    assert verdict_of(mirrored, estimate(-mean, half), scale) == verdict


def test_values_are_judged_only_at_their_scale():
    value = claim(rule="value", value=2.54, tolerance=0.01, scale="paper", evidence=VALUE)
    assert verdict_of(value, estimate(2.54), "smoke") == "not run"
    assert verdict_of(value, estimate(2.55), "paper") == "reproduced"
    assert verdict_of(value, estimate(2.60), "paper") == "contradicted"
    # With an interval, all of it has to agree, or to differ.
    assert verdict_of(value, estimate(2.55, 0.02), "paper") == "unresolved"
    assert verdict_of(value, estimate(2.60, 0.02), "paper") == "contradicted"


def test_closed_forms_and_bounds():
    exact = claim(rule="exact", value=7.28, tolerance=0.002, evidence=VALUE)
    assert verdict_of(exact, estimate(7.344), "smoke") == "contradicted"
    assert verdict_of(exact, estimate(7.281), "smoke") == "reproduced"
    bound = claim(rule="bound", high=0.0025, evidence=VALUE)
    assert verdict_of(bound, estimate(0.001), "smoke") == "reproduced"
    assert verdict_of(bound, estimate(0.003), "smoke") == "contradicted"


@pytest.mark.parametrize(
    ("mean", "half", "verdict"),
    [
        (0.0, 0.002, "reproduced"),
        (0.002, 0.001, "unresolved"),
        (-0.004, 0.001, "contradicted"),
        (0.004, 0.001, "contradicted"),
        (0.0, 0.01, "unresolved"),
    ],
)
def test_bounds_are_judged_by_the_interval(mean, half, verdict):
    bound = claim(rule="bound", low=-0.0025, high=0.0025, evidence=VALUE)
    assert verdict_of(bound, estimate(mean, half), "smoke") == verdict


def test_bounds_of_another_scale_wait_for_it():
    bound = claim(rule="bound", low=0.8, high=0.9, scale="paper", evidence=VALUE)
    assert verdict_of(bound, estimate(0.85), "smoke") == "not run"
    assert verdict_of(bound, estimate(0.85), "paper") == "reproduced"


def test_bounds_of_differences_are_a_direction_at_another_scale():
    compared = {key: LOWER[key] for key in ("experiment", "metric", "compare")}
    bound = claim(rule="bound", low=-0.0025, high=0.0025, scale="paper", evidence=compared)
    assert verdict_of(bound, estimate(0.001), "smoke") == "direction reproduced"
    assert verdict_of(bound, estimate(0.003), "smoke") == "contradicted"
    assert verdict_of(bound, estimate(0.001), "paper") == "reproduced"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rule": "exact", "evidence": VALUE}, "needs `value` and `tolerance`"),
        ({"rule": "ordering"}, "needs either `evidence` or `nothing`"),
        ({"rule": "ordering", "evidence": VALUE}, "needs evidence with two sides"),
        ({"rule": "bound", "evidence": VALUE}, "needs `low` or `high`"),
        ({"rule": "exact", "nothing": "x", "tolerence": 1}, "unknown key 'tolerence'.*'tolerance'"),
    ],
)
def test_incomplete_entries_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        claim(**fields)


def test_the_ledger_is_valid_and_its_numbers_are_those_it_quotes():
    claims = load_claims(LEDGER)
    assert len(claims) > 90
    for name, entry in claims.items():
        if entry.value is not None and entry.unit not in ("1", "B", "B parameters"):
            quoted = entry.reported.removeprefix("about ").replace(",", "").split()[0]
            assert float(quoted) == entry.value, name


def test_every_row_has_a_verdict_and_what_is_not_run_says_why(results_folder, tmp_path):
    rows = write_claims(results_folder, LEDGER, tmp_path / "claims.csv")
    with (tmp_path / "claims.csv").open() as file:
        header = next(csv.reader(file))
    assert tuple(header) == COLUMNS
    by_id = {row["id"]: row for row in rows}
    assert set(by_id) == set(load_claims(LEDGER))
    assert all(row["verdict"] in VERDICTS for row in rows)
    assert by_id["root.loss.muon_adamw"]["verdict"] == "direction reproduced"
    assert by_id["root.loss.order"]["verdict"] == "unresolved"
    assert by_id["root.loss.10b"]["verdict"] == "not run"
    for row in rows:
        if row["verdict"] == "not run":
            assert row["evidence"]


def record(**fields) -> dict:
    labels = json.dumps(fields.pop("labels", {}))
    return {"role": "compute", "run_id": "r", "unit": "1", "labels": labels} | fields


def results_of(tmp_path, records: list[dict], runs: list[dict], experiments: dict) -> Results:
    write_table(pd.DataFrame(records), RECORD_COLUMNS, tmp_path / "records.parquet")
    write_table(pd.DataFrame(runs), RUN_COLUMNS, tmp_path / "runs.parquet")
    plan = {"scale": "smoke", "elsewhere": {}, "experiments": experiments}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    return Results(tmp_path)


def test_two_values_of_a_label_are_compared_draw_by_draw(tmp_path):
    noise = {1: 0.3, 2: -0.3, 3: 0.05}
    records = [
        record(experiment="precision", metric="error", seed=seed,
               value=level + noise[seed] + 0.001 * seed * (side == "fitted"),
               labels={"rows": rows, "side": side, "kind": "k"})
        for rows, gap in ((8, 0.1), (16, -0.1))
        for side, level in (("fixed", 1.0), ("fitted", 1.0 - gap))
        for seed in noise
    ]  # fmt: skip
    records.append(record(experiment="precision", metric="error", seed=1, value=9.0,
                          labels={"rows": 8, "side": "fixed", "kind": "other"}))  # fmt: skip
    evidence = {"experiment": "precision", "metric": "error", "label": "side",
                "compare": ["fitted", "fixed"], "where": {"kind": "k"}, "each": ["rows"],
                "claimed": "first_lower"}  # fmt: skip
    results = results_of(tmp_path, records, [], {})
    rows = list(judge("a.b", claim(rule="ordering", evidence=evidence), results))
    # The gap between the sides is far smaller than the spread of the draws, but they are paired.
    assert [row["measured"] for row in rows] == pytest.approx([-0.098, 0.102])
    assert [row["verdict"] for row in rows] == ["reproduced", "contradicted"]
    assert [row["evidence"].rsplit(", ", 1)[1] for row in rows] == ["8", "16"]


def test_one_optimizer_is_compared_between_two_conditions(tmp_path):
    runs, records = [], []
    for experiment, extra in (("noisy", 0.5), ("clean", 0.0)):
        for seed in range(3):
            run = {"experiment": experiment, "run_id": f"{experiment}{seed}", "role": "reporting",
                   "model": "m", "dataset": "d", "optimizer": "muon", "seed": seed}  # fmt: skip
            runs.append(run | {"status": "completed", "spec": "{}", "environment": "{}"})
            loss = 3.0 + seed + extra + 0.01 * seed * extra
            records.append(run | {"metric": "test/loss", "step": 5, "value": loss, "unit": "nats",
                                  "labels": "{}"})  # fmt: skip
    results = results_of(tmp_path, records, runs, {})
    evidence = {"experiments": ["noisy", "clean"], "metric": "test/loss", "optimizer": "muon",
                "claimed": "first_higher"}  # fmt: skip
    [row] = judge("a.b", claim(rule="ordering", evidence=evidence), results)
    assert row["measured"] == pytest.approx(0.505)
    assert row["verdict"] == "reproduced"
    reverse = evidence | {"optimizer": "adamw"}
    [row] = judge("a.b", claim(rule="ordering", evidence=reverse), results)
    assert (row["verdict"], row["evidence"]) == ("not run", "experiment noisy and clean")


@pytest.mark.parametrize(
    ("square", "blocks", "verdict", "note"),
    [
        ("ddd", "ccc", "direction reproduced", ", 3 of 3 runs of square diverged"),
        ("ccc", "ddd", "contradicted", ", 3 of 3 runs of blocks diverged"),
        ("dcc", "ccc", "unresolved", ", 1 of 3 runs of square diverged"),
        ("ddd", "dcc", "unresolved", ", 3 of 3 runs of square diverged, 1 of 3 runs of blocks div"),
        ("d", "c", "unresolved", ", 1 of 1 runs of square diverged"),
    ],
)
@pytest.mark.parametrize("metric", ["test/loss", "test/accuracy"])
def test_runs_that_diverge_are_worse_and_survivors_no_evidence(
    square, blocks, verdict, note, metric, tmp_path
):
    runs, records = [], []
    for member, statuses in (("square", square), ("blocks", blocks)):
        for seed, status in enumerate(statuses):
            run = {"experiment": "e", "run_id": f"{member}{seed}", "role": "reporting",
                   "model": "m", "dataset": "d", "optimizer": member, "seed": seed}  # fmt: skip
            status = {"c": "completed", "d": "diverged"}[status]
            runs.append(run | {"status": status, "spec": "{}", "environment": "{}"})
            if status == "completed":
                value = 0.1 * seed + (member == "square") * (0.2 + 0.01 * seed)
                records.append(run | {"metric": metric, "step": 5, "value": value, "unit": "1",
                                      "labels": "{}"})  # fmt: skip
    worse = "first_higher" if metric == "test/loss" else "first_lower"
    evidence = {"experiment": "e", "metric": metric, "compare": ["square", "blocks"],
                "claimed": worse}  # fmt: skip
    results = results_of(tmp_path, records, runs, {})
    [row] = judge("a.b", claim(rule="ordering", scale="paper", evidence=evidence), results)
    assert row["verdict"] == verdict
    assert note in row["evidence"]
    # A bound needs one number, but not one of the runs that are left.
    bound = {key: evidence[key] for key in ("experiment", "metric", "compare")}
    [row] = judge("a.b", claim(rule="bound", low=-9, high=9, evidence=bound), results)
    some = "1 of 3" in note
    assert row["verdict"] == ("unresolved" if some else "contradicted")
