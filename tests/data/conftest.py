"""A corpus of all file types and the specification of a dataset made of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from text_corpora import make_texts, specification, write_parquet


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "corpus"
    write_parquet(folder / "a.parquet", make_texts(0, 150), group=40)
    lines = [json.dumps({"text": text}) for text in make_texts(1, 120)]
    (folder / "b.jsonl").write_text("\n".join(lines) + "\n")
    for index, text in enumerate(make_texts(2, 30)):
        (folder / f"c{index}.txt").write_text(text)
    return folder


@pytest.fixture
def spec(corpus) -> dict[str, Any]:
    return specification({"type": "local", "path": str(corpus), "column": "text"})


@pytest.fixture
def small_pieces(monkeypatch):
    """Several shards, batches and commits in a corpus of kilobytes."""
    monkeypatch.setattr("harness.data.token_shards.SHARD_TOKENS", 5000)
    monkeypatch.setattr("harness.data.text.BATCH_BYTES", 1000)
    monkeypatch.setattr("harness.data.text.COMMIT_BYTES", 4000)
