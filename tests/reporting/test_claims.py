import csv
from pathlib import Path

import pytest

from harness.config.base import validate
from harness.config.claims_schema import Claim, load_claims
from harness.errors import UserError
from harness.records.statistics import Estimate
from harness.reporting.claims import COLUMNS, VERDICTS, verdict_of, write_claims

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


def test_closed_forms_and_bounds():
    exact = claim(rule="exact", value=7.28, tolerance=0.002, evidence=VALUE)
    assert verdict_of(exact, estimate(7.344), "smoke") == "contradicted"
    assert verdict_of(exact, estimate(7.281), "smoke") == "reproduced"
    bound = claim(rule="bound", high=0.0025, evidence=VALUE)
    assert verdict_of(bound, estimate(0.001), "smoke") == "reproduced"
    assert verdict_of(bound, estimate(0.003), "smoke") == "contradicted"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rule": "exact", "evidence": VALUE}, "needs `value` and `tolerance`"),
        ({"rule": "ordering"}, "needs either `evidence` or `nothing`"),
        ({"rule": "ordering", "evidence": VALUE}, "needs evidence with `compare`"),
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
            quoted = entry.reported.replace(",", "").split()[0]
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
