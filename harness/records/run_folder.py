"""The folder of one run: specification, metric stream, checkpoint and summary.

``results/runs/<run id>/`` belongs to the harness alone. Snakemake never owns a file in it, so no
failing or changed workflow can cost a run.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import write_atomically, write_json


class RunFolder:
    """One run on disk."""

    def __init__(self, runs: Path, run_id: str) -> None:
        self.run_id = run_id
        self.path = runs / run_id
        self.checkpoints = self.path / "checkpoint"
        self.weights = self.path / "weights.safetensors"
        self._metrics = self.path / "metrics.jsonl"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; a second process waits. The kernel frees the lock of a killed process."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def summary(self) -> dict[str, Any] | None:
        """Return the summary of a run that has ended, else None."""
        path = self.path / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        """Store the resolved specification."""
        write_json(self.path / "spec.json", spec)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Store the summary: from now on the run counts as ended."""
        write_json(self.path / "summary.json", summary)

    def append_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Append rows of ``step``, ``metric``, ``value`` and ``unit`` to the metric stream."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self._metrics.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows after ``step``, which a resumed run is about to write again."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self._metrics, lines.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metric stream; a last line cut short by a kill is not part of it."""
        if not self._metrics.is_file():
            return []
        lines = self._metrics.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


def require_summary(folder: RunFolder) -> dict[str, Any]:
    """Return the summary of a run that a job says has ended.

    Raises:
        UserError: If it is gone.
    """
    summary = folder.summary()
    if summary is None:
        raise UserError(
            f"{folder.path / 'summary.json'}: no such file, but a job lists this run; run "
            "'harness forget' and then 'snakemake' to train it again"
        )
    return summary
