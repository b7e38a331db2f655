"""A stand-in for the hub, a mirror of it, and a tokenizer."""

from pathlib import Path

import pytest
import yaml
from standard_rows import STANDARD, TEXTS, Row, write_rows
from tokenizers import Tokenizer

from harness.data.tokenizers import make_tokenizer


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """Folders that `datasets` takes for the repositories of the hub, with a training split."""
    configs: dict[str, list[Row]] = {}
    for data in STANDARD.values():
        files = []
        for split, rows in (("train", data.rows[:1]), (data.split, data.rows)):
            file = f"{data.name}-{split}.jsonl"
            write_rows(tmp_path / "hub" / data.path / file, rows)
            files.append({"split": split, "path": file})
        configs.setdefault(data.path, []).append({"config_name": data.name, "data_files": files})
    for path, entries in configs.items():
        card = yaml.safe_dump({"configs": entries})
        (tmp_path / "hub" / path / "README.md").write_text(f"---\n{card}---\n")
    monkeypatch.chdir(tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture(scope="session")
def mirror(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    for task, data in STANDARD.items():
        write_rows(folder / f"{task}.jsonl", data.rows)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer({"type": "bpe", "vocab_size": 300}, TEXTS * 5, "test")
