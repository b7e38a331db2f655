"""A damaged file of a run or of the store is named in one line; nothing of it passes as whole."""

import numpy as np
import pandas as pd
import pytest

from harness.errors import UserError
from harness.records.run_folder import RunFolder
from harness.records.snapshots import EDGES, PROBABILITIES, Snapshot, read_snapshots, write_snapshot
from harness.records.store import RECORD_COLUMNS, load_records, write_table

STEPS = 4
METRICS = ("train/loss", "validation/loss", "test/loss")


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A run with a metric stream of two steps."""
    folder = RunFolder(tmp_path, "run")
    for step in (2, STEPS):
        folder.append_metrics([row(step, metric) for metric in METRICS])
    return folder


def row(step: int, metric: str = "train/loss") -> dict:
    return {"step": step, "metric": metric, "value": 1.5, "unit": "nats"}


def summary(digest: str | None, status: str = "completed") -> dict:
    digests = {} if digest is None else {"metrics_sha256": digest}
    return {"status": status, "spec": {"training": {"steps": STEPS}}} | digests


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def drop_a_line(path):
    first, _, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, *rest]))


DAMAGES = {"cut": cut, "emptied": lambda path: path.write_bytes(b""),
           "deleted": lambda path: path.unlink()}  # fmt: skip


def test_a_whole_stream_is_returned_with_a_digest_or_without(folder):
    for digest in (folder.metrics_sha256(), None):
        assert folder.recorded_metrics(summary(digest)) == folder.metrics()


@pytest.mark.parametrize("damage", [*DAMAGES.values(), drop_a_line], ids=[*DAMAGES, "line"])
def test_a_stream_that_differs_from_its_digest_is_refused(folder, damage):
    ended = summary(folder.metrics_sha256())
    damage(folder.path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl: (no such|found sha256).*expected sha256"):
        folder.recorded_metrics(ended)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_without_a_digest_the_last_step_has_to_be_there(folder, damage):
    damage(folder.path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl: found no \w+/loss of step 4, expected"):
        folder.recorded_metrics(summary(None))
    assert folder.recorded_metrics(summary(None, "diverged")) == folder.metrics()


def test_a_line_cut_by_a_kill_is_no_row_and_spoils_no_other(folder):
    whole = folder.metrics()
    cut(folder.path / "metrics.jsonl")
    assert folder.metrics() == whole[:-1]
    folder.append_metrics(whole[-1:])
    assert folder.metrics() == whole


@pytest.mark.parametrize("line", [b"garbage", b"\xff\xfe", b"7"])
def test_a_line_that_is_no_row_is_named(folder, line):
    path = folder.path / "metrics.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1: found .* expected a row"):
        folder.metrics()


def test_a_stream_that_ends_before_the_checkpoint_is_refused(folder):
    folder.truncate_metrics(2)
    assert {row["step"] for row in folder.metrics()} == {2}
    with pytest.raises(UserError, match=r"metrics\.jsonl: found no row of step 4"):
        folder.truncate_metrics(4)


def test_a_damaged_summary_is_named(folder):
    folder.write_summary(summary(None))
    cut(folder.path / "summary.json")
    with pytest.raises(UserError, match=r"summary\.json: found no JSON"):
        folder.summary()


def test_a_damaged_snapshot_is_named(folder):
    counts = np.zeros(len(EDGES) - 1)
    write_snapshot(folder, Snapshot(2, {"w": np.ones(3)}, np.zeros(len(PROBABILITIES)), counts))
    folder.write_summary(summary(None) | {"snapshots": [2]})
    cut(folder.path / "snapshots" / "step-2.safetensors")
    with pytest.raises(UserError, match=r"step-2\.safetensors: found no whole file"):
        list(read_snapshots(folder))


@pytest.mark.parametrize("size", [0, 5, 300, -10])
def test_a_damaged_table_is_named(tmp_path, size):
    path = tmp_path / "records.parquet"
    write_table(pd.DataFrame([{"metric": "train/loss", "value": 1.0}]), RECORD_COLUMNS, path)
    assert len(load_records(tmp_path)) == 1
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"records\.parquet: found no whole Parquet table"):
        load_records(tmp_path)
