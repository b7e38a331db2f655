"""pip that finds its packages in a folder."""

from pathlib import Path

import pytest


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "index"
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    # "0" is how pip's environment switches the isolation off: setuptools is the installed one.
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")
    return folder
