"""The ledger: every published claim beside what was found, with a computed verdict."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from harness.config.claims_schema import (
    Claim,
    ComparisonEvidence,
    ConditionEvidence,
    LabelEvidence,
    ValueEvidence,
    load_claims,
)
from harness.files import write_atomically
from harness.records.statistics import Estimate, mean_over_seeds, paired_difference
from harness.reporting.results import Results, Sweep, higher_is_better, label, with_labels

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
        waiting = "experiment " + " and ".join(claim.experiments) if claim.evidence else ""
        yield _row(name, claim, results, "not run", None, claim.nothing or waiting)


def verdict_of(claim: Claim, estimate: Estimate, scale: str) -> Verdict:
    """Return the verdict on a claim, given what was found at ``scale``."""
    at_published_scale = claim.scale in ("any", scale)
    if claim.rule == "ordering":
        assert claim.sign is not None
        return _ordering(claim.sign, estimate, at_published_scale=at_published_scale)
    if claim.rule == "value" and claim.scale != scale:
        return "not run"
    if claim.rule == "bound":
        if not at_published_scale and isinstance(claim.evidence, ValueEvidence):
            return "not run"
        low = -math.inf if claim.low is None else claim.low
        high = math.inf if claim.high is None else claim.high
    else:
        assert claim.value is not None
        assert claim.tolerance is not None
        ends = (claim.value * (1 - claim.tolerance), claim.value * (1 + claim.tolerance))
        low, high = sorted(ends)
    verdict = _within(low, high, estimate)
    elsewhere = claim.rule == "bound" and not at_published_scale
    return "direction reproduced" if verdict == "reproduced" and elsewhere else verdict


def _ordering(sign: int, estimate: Estimate, *, at_published_scale: bool) -> Verdict:
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    if not estimate.has_spread or low <= 0 <= high:
        return "unresolved"
    if high < 0:
        return "contradicted"
    return "reproduced" if at_published_scale else "direction reproduced"


def _within(low: float, high: float, estimate: Estimate) -> Verdict:
    """Judge a range by the interval of what was found, or by the one number that there is."""
    first, last = estimate.mean, estimate.mean
    if estimate.has_spread:
        first, last = estimate.low, estimate.high
    if low <= first and last <= high:
        return "reproduced"
    return "contradicted" if last < low or high < first else "unresolved"


def _found(claim: Claim, results: Results) -> Iterator[tuple[str, Estimate]]:
    match claim.evidence:
        case ComparisonEvidence() as evidence:
            yield from _comparisons(evidence, results)
        case LabelEvidence() as evidence:
            yield from _label_comparisons(evidence, results)
        case ConditionEvidence() as evidence:
            yield from _conditions(evidence, results)
        case ValueEvidence() as evidence:
            yield from _values(evidence, results)


def _comparisons(evidence: ComparisonEvidence, results: Results) -> Iterator[tuple[str, Estimate]]:
    for sweep in _sweeps(results, evidence.experiment):
        first, second = evidence.compare
        if evidence.relative:
            difference = sweep.relative_difference(evidence.metric, first, second)
            where = f"{first} / {second} - 1"
        else:
            difference = sweep.difference(evidence.metric, first, second)
            where = f"{first} - {second}"
        sides = [(name, sweep.runs_of(name, "reporting")) for name in (first, second)]
        difference, note = _with_diverged(difference, evidence.metric, sides)
        if difference is not None:
            yield f"{where}, {evidence.metric}, {sweep.name}{note}", difference


def _label_comparisons(evidence: LabelEvidence, results: Results) -> Iterator[tuple[str, Estimate]]:
    rows = _matching(evidence.experiment, evidence.metric, evidence.where, results)
    rows = rows.assign(side=label(rows, evidence.label).map(str))
    for name in evidence.each:
        if name not in FACTORS:
            rows = with_labels(rows, name)
    # Without any key to tell rows apart, all of them are one group.
    for key, group in rows.groupby(evidence.each or (lambda _: ""), sort=True):
        means = group.groupby(["side", "seed"])["value"].mean()
        first, second = ({int(seed): float(value) for seed, value in means[side].items()}
                         if side in means else {} for side in evidence.compare)  # fmt: skip
        difference = paired_difference(first, second)
        if difference is not None:
            place = " x ".join(map(str, key)) if evidence.each else evidence.experiment
            where = ", ".join([*map(str, evidence.where.values()), place])
            yield f"{' - '.join(evidence.compare)}, {evidence.metric}, {where}", difference


def _conditions(evidence: ConditionEvidence, results: Results) -> Iterator[tuple[str, Estimate]]:
    first, second = evidence.experiments
    for one in _sweeps(results, first):
        for other in _sweeps(results, second):
            if (one.fixed, one.dataset) != (other.fixed, other.dataset):
                continue
            difference = paired_difference(*(
                sweep.final(evidence.metric, evidence.optimizer) for sweep in (one, other)
            ))  # fmt: skip
            sides = [(sweep.experiment, sweep.runs_of(evidence.optimizer, "reporting"))
                     for sweep in (one, other)]  # fmt: skip
            difference, note = _with_diverged(difference, evidence.metric, sides)
            if difference is not None:
                place = f"{one.fixed}, {one.dataset}{note}"
                yield (
                    f"{first} - {second}, {evidence.optimizer}, {evidence.metric}, {place}",
                    difference,
                )


def _with_diverged(
    difference: Estimate | None, metric: str, sides: list[tuple[str, pd.DataFrame]]
) -> tuple[Estimate | None, str]:
    """Return a difference that knows of runs that diverged, and a note that names them.

    A side whose runs all diverged is worse than one without divergence, by more than any number.
    Where only some of them did, those that are left are a selection, and nothing is resolved.

    Args:
        difference: First minus second side of the runs that completed.
        metric: What differs.
        sides: Name and reporting runs of both.
    """
    diverged = [int((runs["status"] == "diverged").sum()) for _, runs in sides]
    totals = [len(runs) for _, runs in sides]
    if not any(diverged) or not all(totals):
        return difference, ""
    note = "".join(f", {count} of {total} runs of {name} diverged"
                   for (name, _), count, total in zip(sides, diverged, totals, strict=True)
                   if count)  # fmt: skip
    shares = [count / total for count, total in zip(diverged, totals, strict=True)]
    if sorted(shares) == [0, 1]:
        largest = math.copysign(math.inf, shares[0] - shares[1])
        ends = -largest if higher_is_better(metric) else largest
        return Estimate(ends, ends, ends, min(totals)), note
    mean = math.nan if difference is None else difference.mean
    return Estimate(mean, -math.inf, math.inf, min(totals)), note


def _sweeps(results: Results, experiment: str) -> Iterable[Sweep]:
    return (sweep for sweep in results.sweeps() if sweep.experiment == experiment)


def _matching(
    experiment: str, metric: str, where: dict[str, Any], results: Results
) -> pd.DataFrame:
    rows = results.of(experiment)
    rows = rows[(rows["metric"] == metric) & (rows["role"] != "tuning")]
    for key, wanted in where.items():
        values = rows[key] if key in FACTORS else label(rows, key)
        rows = rows[values == wanted]
    return rows


def _values(evidence: ValueEvidence, results: Results) -> Iterator[tuple[str, Estimate]]:
    rows = _matching(evidence.experiment, evidence.metric, evidence.where, results)
    if not rows.empty:
        ordered = rows.sort_values("step", na_position="first")
        last = ordered.groupby(["run_id", "seed"], dropna=False)["value"].last()
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
    experiment = claim.experiments[0]
    elsewhere = results.plan["elsewhere"].get(experiment)
    here = results.plan["experiments"].get(experiment)
    entry = here if here and claim.rule != "value" else elsewhere or here
    return f"{entry['command']} ({entry['cost']})" if entry else ""
