"""The ledger: every published claim beside what was found, with a computed verdict."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from harness.config.claims_schema import Claim, ComparisonEvidence, ValueEvidence, load_claims
from harness.files import write_atomically
from harness.records.statistics import Estimate, mean_over_seeds
from harness.reporting.results import Results, Sweep

Verdict = Literal["reproduced", "direction reproduced", "unresolved", "contradicted", "not run"]
VERDICTS: tuple[Verdict, ...] = (
    "reproduced",
    "direction reproduced",
    "unresolved",
    "contradicted",
    "not run",
)
COLUMNS = ("id", "source", "reported", "measured", "low", "high", "unit", "rule", "scale",
           "verdict", "evidence", "command")  # fmt: skip
FACTORS = ("model", "dataset", "optimizer")


def write_claims(records: Path, claims: Path, output: Path) -> list[dict[str, Any]]:
    """Judge every claim of the file ``claims`` and write the ledger as CSV.

    Raises:
        UserError: If the ledger or the records are not what they should be.
    """
    results = Results(records)
    rows = [
        row for name, claim in load_claims(claims).items() for row in judge(name, claim, results)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    write_atomically(output, frame.to_csv(index=False).encode())
    return rows


def judge(name: str, claim: Claim, results: Results) -> Iterator[dict[str, Any]]:
    """Yield a row of the ledger for each place where the records bear on ``claim``.

    A claim on which nothing bears yields one row, with the verdict ``not run``.
    """
    found = list(_found(claim, results))
    for where, estimate in found:
        verdict = verdict_of(claim, estimate, results.scale)
        yield _row(name, claim, results, verdict, estimate, where)
    if not found:
        waiting = f"experiment {claim.evidence.experiment}" if claim.evidence else ""
        yield _row(name, claim, results, "not run", None, claim.nothing or waiting)


def verdict_of(claim: Claim, estimate: Estimate, scale: str) -> Verdict:
    """Return the verdict on a claim, given what was found at ``scale``."""
    if claim.rule == "ordering":
        assert isinstance(claim.evidence, ComparisonEvidence)
        sign = -1 if claim.evidence.claimed == "first_lower" else 1
        return _ordering(sign, estimate, at_published_scale=claim.scale in ("any", scale))
    if claim.rule == "value" and claim.scale != scale:
        return "not run"
    if claim.rule == "bound":
        low = -math.inf if claim.low is None else claim.low
        high = math.inf if claim.high is None else claim.high
        return "reproduced" if low <= estimate.mean <= high else "contradicted"
    assert claim.value is not None
    assert claim.tolerance is not None
    close = math.isclose(estimate.mean, claim.value, rel_tol=claim.tolerance, abs_tol=0.0)
    return "reproduced" if close else "contradicted"


def _ordering(sign: int, estimate: Estimate, *, at_published_scale: bool) -> Verdict:
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    if not estimate.has_spread or low <= 0 <= high:
        return "unresolved"
    if high < 0:
        return "contradicted"
    return "reproduced" if at_published_scale else "direction reproduced"


def _found(claim: Claim, results: Results) -> Iterator[tuple[str, Estimate]]:
    if isinstance(claim.evidence, ComparisonEvidence):
        yield from _comparisons(claim.evidence, results)
    elif isinstance(claim.evidence, ValueEvidence):
        yield from _values(claim.evidence, results)


def _comparisons(evidence: ComparisonEvidence, results: Results) -> Iterator[tuple[str, Estimate]]:
    for sweep in _sweeps(results, evidence.experiment):
        difference = sweep.difference(evidence.metric, *evidence.compare)
        if difference is not None:
            first, second = evidence.compare
            yield f"{first} - {second}, {evidence.metric}, {sweep.name}", difference


def _sweeps(results: Results, experiment: str) -> Iterable[Sweep]:
    return (sweep for sweep in results.sweeps() if sweep.experiment == experiment)


def _values(evidence: ValueEvidence, results: Results) -> Iterator[tuple[str, Estimate]]:
    rows = results.of(evidence.experiment)
    rows = rows[(rows["metric"] == evidence.metric) & (rows["role"] != "tuning")]
    for key, wanted in evidence.where.items():
        if key in FACTORS:
            rows = rows[rows[key] == wanted]
        else:
            rows = rows[
                rows["labels"].map(lambda text, k=key, w=wanted: json.loads(text).get(k) == w)
            ]
    if not rows.empty:
        last = rows.sort_values("step", na_position="first").groupby("run_id")["value"].last()
        yield f"{evidence.metric}, {evidence.experiment}", mean_over_seeds(list(last))


def _row(
    name: str, claim: Claim, results: Results, verdict: Verdict, estimate: Estimate | None,
    where: str,
) -> dict[str, Any]:  # fmt: skip
    return {
        "id": name,
        "source": claim.source,
        "reported": claim.reported,
        "measured": estimate.mean if estimate else None,
        "low": estimate.low if estimate else None,
        "high": estimate.high if estimate else None,
        "unit": claim.unit,
        "rule": claim.rule,
        "scale": results.scale if estimate else claim.scale,
        "verdict": verdict,
        "evidence": where,
        "command": _command(claim, results) if verdict == "not run" else "",
    }


def _command(claim: Claim, results: Results) -> str:
    """Return what to type to get evidence, and what it costs."""
    if claim.evidence is None:
        return ""
    experiment = claim.evidence.experiment
    elsewhere = results.plan["elsewhere"].get(experiment)
    here = results.plan["experiments"].get(experiment)
    entry = here if here and claim.rule != "value" else elsewhere or here
    return f"{entry['command']} ({entry['cost']})" if entry else ""
