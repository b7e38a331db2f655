"""Ctrl-C ends a preparation with one line, and the next one goes on."""

from types import SimpleNamespace

import pytest

from harness.errors import Interrupted
from harness.jobs.prepare import prepare_dataset


def test_ctrl_c_is_an_interruption_that_names_the_folder(tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.jobs.prepare.prepare", stop)
    item = SimpleNamespace(spec={}, factors=SimpleNamespace(dataset="corpus"))
    context = SimpleNamespace(
        catalog=SimpleNamespace(folder="config"),
        output=lambda job: tmp_path / "corpus-1" / "manifest.json",
    )
    with pytest.raises(Interrupted, match="corpus-1 is not yet prepared"):
        prepare_dataset(SimpleNamespace(work=[item]), context)
