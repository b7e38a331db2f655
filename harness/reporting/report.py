"""The report of a folder of records: Markdown beside its figures, and one HTML file."""

import base64
import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pandas as pd
from markdown_it import MarkdownIt

from harness.files import write_atomically
from harness.reporting.claims import VERDICTS
from harness.reporting.figures import read_index
from harness.reporting.results import Results
from harness.reporting.tables import Table, make_tables

STYLE = Path(__file__).with_name("report.css")
PAPERS = {
    "root": "ROOT (arXiv 2511.20626) and the optimizers that it is compared with",
    "ds": "Insights into DeepSeek-V3 (arXiv 2505.09343)",
}
LEDGER = ("id", "reported", "measured", "unit", "verdict", "evidence")
NOT_RUN = ("id", "reported", "unit", "evidence", "command")


def write_report(
    records: Path, figures: Path, claims: Path, recommendations: Path, html: Path, markdown: Path
) -> None:
    """Write the report of a folder of records.

    Args:
        records: Folder with the records.
        figures: Folder with the drawn figures.
        claims: The ledger, CSV.
        recommendations: What bears on each recommendation for hardware, CSV.
        html: Self-contained page to write.
        markdown: Text to write; it links to the figures.
    """
    results = Results(records)
    ledger = pd.read_csv(claims, keep_default_na=False)
    asked = pd.read_csv(recommendations, keep_default_na=False, dtype={"number": str})
    text = "\n\n".join(_sections(results, ledger, asked, figures)) + "\n"
    links = re.sub(r"\(figures/", f"({figures.relative_to(markdown.parent)}/", text)
    write_atomically(markdown, links.encode())
    title = f"optrepro: scale {results.scale}"
    write_atomically(html, _page(title, text, figures).encode())


def _sections(
    results: Results, ledger: pd.DataFrame, asked: pd.DataFrame, figures: Path
) -> Iterator[str]:
    plan = results.plan
    yield f"# What the papers claim, and what was found at scale `{results.scale}`"
    yield f"{plan['description'][0].upper()}{plan['description'][1:]}."
    if results.missing:
        yield (
            f"**Not complete**: {sum(map(len, results.missing.values()))} of {plan['jobs']} jobs "
            "have no result yet. They are listed at the end, and no table or figure waits for them."
        )
    yield from _summary(results, ledger)
    yield "## Claims"
    yield (
        "Every verdict is computed from records. *Reproduced*: agrees at the scale at which it was "
        "claimed. *Direction reproduced*: the paired difference has the claimed sign, or lies in "
        "the claimed range, at another scale. *Unresolved*: its 95 % interval contains zero, or an "
        "end of the claimed range, or some of its runs diverged. Claims about values are judged "
        "only at the published scale. Intervals are not widened for the number of claims: of "
        "twenty without any effect, one is expected to be resolved."
    )
    for prefix, paper in PAPERS.items():
        ds = ledger["id"].str.startswith("ds.")
        yield from _ledger(paper, ledger[ds if prefix == "ds" else ~ds])
    yield "## Hardware recommendations"
    yield (
        "What arXiv 2505.09343 asks future hardware for, and the numbers here that bear on it: "
        "means over seeds with 95 % intervals. They say what a recommendation would be worth, not "
        "that it is right."
    )
    yield _recommendations(asked)
    tables = list(make_tables(results))
    index = read_index(figures)
    for name, entry in plan["experiments"].items():
        yield f"## {entry['title']}"
        yield f"*{entry['question']}*"
        if entry["kind"] == "train":
            yield _budget(entry)
        yield from _evidence(name, tables, index)
    if not results.of("calibration").empty:
        yield "## Coefficients of ROOT"
        yield from _evidence("calibration", tables, index)
    if results.missing:
        yield "## Jobs without a result"
        yield _missing(results.missing)
    yield "## Runs that did not complete"
    yield _not_completed(results.runs)
    yield "## Provenance"
    yield _provenance(results.runs)


def _summary(results: Results, ledger: pd.DataFrame) -> Iterator[str]:
    counts = ledger["verdict"].value_counts()
    yield _markdown(pd.DataFrame({v: [int(counts.get(v, 0))] for v in VERDICTS}))
    runs = results.runs["status"].value_counts()
    ended = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in runs.items())
    yield f"{len(results.runs)} training runs: {ended}." if ended else "No training runs."


def _ledger(paper: str, rows: pd.DataFrame) -> Iterator[str]:
    yield f"### {paper}"
    judged = rows[rows["verdict"] != "not run"].copy()
    waiting = rows[rows["verdict"] == "not run"]
    if not judged.empty:
        judged["measured"] = [
            _measured(row["measured"], row["low"], row["high"]) for _, row in judged.iterrows()
        ]
        yield _markdown(judged[list(LEDGER)])
    if not waiting.empty:
        yield f"Not run at this scale ({len(waiting)}), with what would run it and the cost:"
        columns = [name for name in NOT_RUN if (waiting[name] != "").any()]
        yield _markdown(waiting[columns])


def _measured(mean: str, low: str, high: str) -> str:
    text = f"{float(mean):.4g}" if mean != "" else "-"
    return f"{text} [{float(low):.4g}, {float(high):.4g}]" if low not in ("", mean) else text


def _recommendations(rows: pd.DataFrame) -> str:
    """Return the table in which every recommendation is said once, before what bears on it."""
    repeated = rows["number"].duplicated()
    value = [
        f"{_measured(row['value'], row['low'], row['high'])} {row['unit']}".removesuffix(" 1")
        if row["value"] != "" else row["note"]
        for _, row in rows.iterrows()
    ]  # fmt: skip
    return _markdown(pd.DataFrame({
        "no.": rows["number"].mask(repeated, ""),
        "recommendation": rows["recommendation"].mask(repeated, ""),
        "section": rows["sections"].mask(repeated, ""),
        "what bears on it": rows["says"],
        "value": value,
        "experiment": rows["experiment"],
    }))  # fmt: skip


def _budget(entry: dict) -> str:
    tuning, reporting = (", ".join(map(str, entry["seeds"][role]))
                         for role in ("tuning", "reporting"))  # fmt: skip
    if not entry["trials"]:
        return (
            f"All runs have the same hyperparameters; seeds {reporting}, {entry['steps']} steps a "
            "run."
        )
    return (
        f"Every {entry['compare'].removesuffix('s')} has the same budget: {entry['trials']} "
        f"learning rates on tuning seeds {tuning}, then the best one on fresh seeds {reporting}; "
        f"{entry['steps']} steps a run."
    )


def _evidence(experiment: str, tables: list[Table], index: list[dict[str, str]]) -> Iterator[str]:
    for table in tables:
        if table.experiment == experiment:
            yield f"**{table.title}.** {table.caption}"
            yield _markdown(table.text)
    for figure in index:
        if figure["experiment"] == experiment:
            yield f"![{figure['title']}](figures/{figure['name']}.png)"
            yield f"**{figure['title']}.** {figure['caption']}"


def _missing(missing: dict[str, list[str]]) -> str:
    return _markdown(pd.DataFrame({
        "experiment or stage": list(missing),
        "jobs": [", ".join(names) for names in missing.values()],
    }))  # fmt: skip


def _not_completed(runs: pd.DataFrame) -> str:
    rows = runs[runs["status"] != "completed"]
    if rows.empty:
        return "All runs completed."
    columns = ["experiment", "role", "optimizer", "learning_rate", "seed", "status", "reason"]
    return _markdown(rows[columns].astype(object).fillna("-"))


def _provenance(runs: pd.DataFrame) -> str:
    environments = [json.loads(text) for text in runs["environment"].unique()]
    facts: dict[str, set[str]] = {}
    for environment in environments:
        packages = environment.pop("packages", {})
        for key, value in {**environment, **packages}.items():
            if value is not None:
                facts.setdefault(key, set()).add(str(value))
    rows = {"what": list(facts), "value": [", ".join(sorted(v)) for v in facts.values()]}
    return _markdown(pd.DataFrame(rows))


def _markdown(frame: pd.DataFrame) -> str:
    cells = frame.map(lambda cell: str(cell).replace("|", r"\|"))
    return str(cells.to_markdown(index=False, disable_numparse=True))


def _page(title: str, text: str, figures: Path) -> str:
    body = MarkdownIt("commonmark").enable("table").render(text)
    headings = re.findall(r"<h2>(.*?)</h2>", body)
    for number, heading in enumerate(headings):
        body = body.replace(f"<h2>{heading}</h2>", f'<h2 id="s{number}">{heading}</h2>', 1)
    links = "".join(f'<li><a href="#s{n}">{h}</a></li>' for n, h in enumerate(headings))
    body = body.replace("<table>", '<div class="table"><table>').replace(
        "</table>", "</table></div>"
    )
    for verdict in VERDICTS:
        badge = f'<span class="verdict {verdict.replace(" ", "-")}">{verdict}</span>'
        body = re.sub(rf"(<t[dh][^>]*>){verdict}(</t[dh]>)", rf"\g<1>{badge}\g<2>", body)
    body = re.sub(r'src="figures/([^"]+)"', lambda found: _inline(figures / found[1]), body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text()}</style>\n</head>\n<body>\n"
        f"<nav><ul>{links}</ul></nav>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _inline(image: Path) -> str:
    encoded = base64.b64encode(image.read_bytes()).decode()
    return f'src="data:image/png;base64,{encoded}"'
