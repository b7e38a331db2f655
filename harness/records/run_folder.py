"""The folder of one run: specification, metric stream, checkpoint and summary.

``results/runs/<run id>/`` belongs to the harness alone. Snakemake never owns a file in it, so no
failing or changed workflow can cost a run.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from harness.errors import UserError
from harness.files import read_json, sha256_of, write_atomically, write_json

# What every completed run recorded at its last step.
FINAL_METRICS = ("validation/loss", "test/loss")


class RunFolder:
    """One run on disk."""

    def __init__(self, runs: Path, run_id: str) -> None:
        self.run_id = run_id
        self.path = runs / run_id
        self.checkpoints = self.path / "checkpoint"
        self.weights = self.path / "weights.safetensors"
        self._metrics = self.path / "metrics.jsonl"
        self._summary = self.path / "summary.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; a second process waits. The kernel frees the lock of a killed process."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def summary(self) -> dict[str, Any] | None:
        """Return the summary of a run that has ended, else None.

        Raises:
            UserError: If it is damaged.
        """
        return read_json(self._summary) if self._summary.is_file() else None

    def outcome(self, keep_weights: bool) -> dict[str, Any] | None:
        """Return the summary of a run that need not be trained again, else None.

        Args:
            keep_weights: Whether a completed run needs its final weights, too.

        Raises:
            UserError: If the summary is damaged.
        """
        done = self.summary()
        if done is not None and keep_weights and done["status"] == "completed":
            return done if self.weights.is_file() else None
        return done

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        """Store the resolved specification."""
        write_json(self.path / "spec.json", spec)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Store the summary: from now on the run counts as ended."""
        write_json(self._summary, summary)

    def drop_summary(self) -> None:
        """Let the run count as unfinished; it goes on from its checkpoint, if there is one."""
        self._summary.unlink(missing_ok=True)

    def append_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Append rows of ``step``, ``metric``, ``value`` and ``unit`` to the metric stream."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self._metrics.open("ab+") as file:
            _drop_cut_line(file)
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows after ``step``, which a resumed run is about to write again.

        Raises:
            UserError: If the stream is damaged, or ends before ``step``: what is missing would not
                be written again.
        """
        rows = [row for row in self.metrics() if row["step"] <= step]
        if step and not any(row["step"] == step for row in rows):
            raise UserError(
                f"{self._metrics}: found no row of step {step}, expected the rows up to there, "
                f"where the checkpoint goes on; put it back, or move {self.path} away to train "
                "this run from step 0"
            )
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self._metrics, lines.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metric stream; a last line cut short by a kill is not part of it.

        Raises:
            UserError: If another line is no row.
        """
        if not self._metrics.is_file():
            return []
        *lines, _ = self._metrics.read_bytes().split(b"\n")
        return [self._row(number, line) for number, line in enumerate(lines, 1)]

    def metrics_sha256(self) -> str | None:
        """Return a digest of the metric stream, None if there is none."""
        return sha256_of(self._metrics) if self._metrics.is_file() else None

    def recorded_metrics(self, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the metric stream of a run that has ended, as whole as it was then.

        Args:
            summary: Of the run.

        Raises:
            UserError: If rows are damaged or missing.
        """
        rows = self.metrics()
        digest = summary.get("metrics_sha256")
        problem = None
        if digest is not None:
            found = self.metrics_sha256()
            if found != digest:
                state = "no such file" if found is None else f"found sha256 {found[:12]}..."
                problem = f"{state}, expected sha256 {digest[:12]}... of summary.json"
        elif summary["status"] == "completed":
            # Summaries of earlier versions have no digest.
            steps = summary["spec"]["training"]["steps"]
            last = {row["metric"] for row in rows if row["step"] == steps}
            missing = [metric for metric in FINAL_METRICS if metric not in last]
            if missing:
                problem = f"found no {missing[0]} of step {steps}, expected that of a completed run"
        if problem is not None:
            raise UserError(f"{self._metrics}: {problem}; {self._way_out()}")
        return rows

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{self._metrics}: line {number}: found {line[:40]!r}, expected a row "
                            f"of the metric stream; {self._way_out()}")  # fmt: skip
        return row

    def _way_out(self) -> str:
        return (f"put it back, or move {self.path} away and run 'harness forget' and 'snakemake' "
                "to train this run again")  # fmt: skip


def _drop_cut_line(file: IO[bytes]) -> None:
    """Cut off a last line without an end, left by a kill; the next row would be glued to it."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def require_summary(folder: RunFolder) -> dict[str, Any]:
    """Return the summary of a run that a job says has ended.

    Raises:
        UserError: If it is gone or damaged.
    """
    summary = folder.summary()
    if summary is None:
        raise UserError(
            f"{folder.path / 'summary.json'}: no such file, but a job lists this run; run "
            "'harness forget' and then 'snakemake' to train it again"
        )
    return summary
