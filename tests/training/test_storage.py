"""Storage that fails ends a job with one line; it is no outcome of a run, which goes on later."""

import errno
import json
import os
import shutil

import pytest
from safetensors import SafetensorError

from harness.errors import Interrupted, UserError
from harness.records.run_folder import RunFolder
from harness.training import loop
from tests.training.test_loop import run, specification


@pytest.fixture
def folder(tmp_path, data) -> RunFolder:
    """A run that was stopped."""
    folder = RunFolder(tmp_path, "stopped")
    with pytest.raises(Interrupted):
        run(specification(), folder, data, stop_after=8)
    return folder


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def ends_like_a_whole_run(folder, data):
    whole = RunFolder(folder.path.parent, "whole")
    expected = run(specification(), whole, data)["weights_sha256"]
    summary = run(specification(), folder, data)
    same = folder.metrics() == whole.metrics()
    return same and (summary["status"], summary["weights_sha256"]) == ("completed", expected)


def test_a_full_disk_leaves_the_last_checkpoint_and_no_outcome(folder, data, monkeypatch):
    before = {path.name for path in folder.checkpoints.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("harness.files.os.fsync", full)
        with pytest.raises(UserError, match=r"stopped: .*No space left on device"):
            run(specification(), folder, data, checkpoint_seconds=0)
    assert folder.summary() is None
    assert {path.name for path in folder.checkpoints.iterdir()} == before
    assert ends_like_a_whole_run(folder, data)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), SafetensorError("No space")])
def test_weights_that_cannot_be_written_are_no_outcome(tmp_path, data, monkeypatch, error):
    def save(_, path):
        path.write_bytes(b"part of it")
        raise error

    folder = RunFolder(tmp_path, "run")
    monkeypatch.setattr(loop, "save_file", save)
    with pytest.raises(UserError, match="No space"):
        run(specification(), folder, data, keep_weights=True)
    assert folder.summary() is None
    assert not list(folder.path.glob("weights*"))


def test_the_rest_of_a_killed_write_is_dropped(folder, data):
    left = folder.checkpoints / "step-10.pt.partial1"
    left.write_bytes(b"part of it")
    with pytest.raises(Interrupted):
        run(specification(), folder, data, stop_after=16)
    assert not left.exists()


def test_a_damaged_pointer_is_no_outcome(folder, data):
    pointer = folder.checkpoints / "latest.json"
    content = pointer.read_text()
    pointer.write_text(content[:9])
    with pytest.raises(UserError, match=r"latest\.json: found no JSON"):
        run(specification(), folder, data)
    assert folder.summary() is None
    pointer.write_text(content)
    assert ends_like_a_whole_run(folder, data)


@pytest.mark.parametrize("content", ["", '{"spec":', "{}", "[]"])
def test_a_damaged_manifest_is_no_outcome(tmp_path, data, content):
    damaged = shutil.copytree(data, tmp_path / "data")
    (damaged / "manifest.json").write_text(content)
    folder = RunFolder(tmp_path, "run")
    with pytest.raises(UserError, match=r"manifest\.json: found no (JSON|'spec')"):
        run(specification(), folder, damaged)
    assert folder.summary() is None


def test_metrics_lost_before_the_checkpoint_are_noticed(folder, data):
    (folder.path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl: found no row of step 8"):
        run(specification(), folder, data)


def test_the_summary_has_a_digest_of_what_was_recorded(folder, data):
    summary = run(specification(), folder, data)
    assert folder.recorded_metrics(summary) == folder.metrics()
    assert summary["metrics_sha256"] == folder.metrics_sha256()
    assert json.loads((folder.path / "summary.json").read_text()) == summary
