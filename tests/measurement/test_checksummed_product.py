"""What is said of flips in checksummed products, and the verdicts on it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness.config.claims_schema import load_claims
from harness.config.yaml_file import read_yaml
from harness.errors import UserError
from harness.measurement.checksum_coverage import TARGETS, Factors, flips, relative_change
from harness.measurement.checksummed_product import bounds_of, checksummed_products
from harness.numerics.bit_flips import bit_names
from harness.records.store import RECORD_COLUMNS, RUN_COLUMNS, write_table
from harness.reporting.claims import judge
from harness.reporting.results import Results
from harness.reporting.robustness_tables import checksum_tables
from paper_figures import checksum_coverage as figure

CONFIG = Path(__file__).parents[2] / "config"
ARGUMENTS = read_yaml(CONFIG / "experiments" / "checksummed_products.yaml")["arguments"]
SMALL = ARGUMENTS | {
    "coverage": ARGUMENTS["coverage"]
    | {"shape": [16, 20, 24], "distributions": ["normal", "uniform"], "flips_per_bit": 3,
       "clean_products": 3, "seeds": [0, 1]},
    "cost": {"sizes": [16, 32], "rounds": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return checksummed_products(**SMALL, device="cpu")


@pytest.fixture
def results(records, tmp_path) -> Results:
    names = {"experiment": "checksummed_products", "run_id": "c", "role": "measure"}
    frame = pd.DataFrame([row | names | {"labels": json.dumps(row["labels"], sort_keys=True)}
                          for row in records])  # fmt: skip
    write_table(frame, RECORD_COLUMNS, tmp_path / "records.parquet")
    write_table(pd.DataFrame(), RUN_COLUMNS, tmp_path / "runs.parquet")
    plan = {"scale": "smoke", "experiments": {"checksummed_products": {"kind": "compute"}},
            "elsewhere": {}}  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    return Results(tmp_path)


def those(records, metric, **labels) -> list[float]:
    return [row["value"] for row in records
            if row["metric"] == metric and row["labels"].items() >= labels.items()]  # fmt: skip


def test_no_two_records_are_told_apart_by_nothing(records):
    keys = [(row["metric"], row.get("seed"), json.dumps(row["labels"], sort_keys=True))
            for row in records]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_every_bit_of_every_target_is_flipped(records):
    for dtype, inputs in (("float32", 32), ("bfloat16", 16)):
        for target in TARGETS:
            found = [row["labels"]["bit"] for row in records
                     if row["metric"] == "checksum/detected" and row.get("seed") == 0
                     and row["labels"].items() >= {"dtype": dtype, "target": target,
                         "bound": "deterministic", "distribution": "normal"}.items()]  # fmt: skip
            assert found == bit_names(torch.float32)[: inputs if target == "input" else 32]


def test_a_change_is_that_of_the_product():
    random = np.random.default_rng(0)
    left, right = (torch.from_numpy(random.standard_normal((9, 9))).float() for _ in range(2))
    factors = Factors.of(left, right)
    exact = (left.double() @ right.double()).numpy()
    norm = np.linalg.norm(exact)
    found = list(flips(factors, ["deterministic"], 4, random))
    signs = [flip.change for flip in found if (flip.target, flip.bit) == ("output", "sign")]
    doubled = np.abs(exact).ravel() * 2 / norm
    # A flipped sign is off by twice the entry.
    assert all(np.isclose(doubled, change, rtol=1e-5).any() for change in signs)
    assert relative_change(torch.full((2, 2), torch.inf), torch.ones(2, 2)) == np.inf


def test_what_matters_is_detected_and_nothing_correct_refused(records):
    for bound in ("deterministic", "probabilistic"):
        assert those(records, "checksum/harmful_detected", bound=bound) == [1, 1]
        assert those(records, "checksum/false_alarms", bound=bound) == [0, 0]
        assert max(those(records, "checksum/clean_margin", bound=bound)) < 1
        assert max(those(records, "checksum/left_over", bound=bound)) < 1e-5
    # At least as much is noticed under the tighter bound.
    tight, loose = (sum(those(records, "checksum/detected", bound=bound))
                    for bound in ("probabilistic", "deterministic"))  # fmt: skip
    assert tight >= loose


def test_cost_stands_beside_its_closed_form(records):
    for dtype in ("float32", "bfloat16"):
        assert len(those(records, "checksum/time_over_plain", dtype=dtype, size=32)) == 2
        assert those(records, "checksum/extra_operations", dtype=dtype, size=32) == [6 / 32]


def test_tensor_cores_get_the_bound_that_holds_for_them():
    assert bounds_of("bfloat16", torch.device("cuda")) == ["deterministic"]
    assert "probabilistic" in bounds_of("float32", torch.device("cuda"))


def test_the_ledger_has_these_verdicts(results):
    claims = load_claims(CONFIG / "claims.yaml")
    about = {name: c for name, c in claims.items() if "checksummed_products" in c.experiments}
    verdicts = {row["id"]: row["verdict"] for name, claim in about.items()
                for row in judge(name, claim, results)}  # fmt: skip
    assert verdicts == {
        "ds.robustness.checksums": "reproduced",
        "ds.robustness.checksums_false_alarms": "reproduced",
    }


def test_tables_say_what_is_noticed_and_what_it_costs(results):
    coverage, cost = checksum_tables(results, "checksummed_products")
    assert list(coverage.numbers["bound"]) == ["deterministic", "probabilistic"]
    assert list(coverage.numbers["false_alarms"]) == [0, 0]
    assert list(coverage.text["harmful flips detected"]) == ["100 %", "100 %"]
    assert len(cost.numbers) == 4
    assert cost.numbers["operations_ratio"].tolist() == [1 + 6 / 16, 1 + 6 / 32] * 2


def test_the_figure_shows_coverage_by_dtype_and_cost(results):
    [(_, drawn)] = figure.draw(results).values()
    assert [ax.get_title() for ax in drawn.axes] == ["float32", "bfloat16", "overlooked", "cost"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtypes": ["float16"]}, "dtypes.0: found 'float16'"),
        ({"coverage": SMALL["coverage"] | {"shape": [4, 4]}}, "coverage.shape: "),
        ({"coverage": SMALL["coverage"] | {"flips": 3}}, "unknown key 'flips'"),
        ({"cost": {"sizes": [], "rounds": 1}}, "cost.sizes: "),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(UserError, match=message):
        checksummed_products(**SMALL | change, device="cpu")
