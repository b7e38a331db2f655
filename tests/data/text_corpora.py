"""Corpora and specifications that the tests of data share."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet


def write_parquet(path: Path, texts: list[str], group: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    pyarrow.parquet.write_table(table, path, row_group_size=group)


def make_texts(seed: int, count: int) -> list[str]:
    generator = np.random.default_rng(seed)
    words = ["spam ", "eggs ", "ham\n", "\u00fcber ", "\u4eba "]
    return ["".join(generator.choice(words, generator.integers(1, 80))) for _ in range(count)]


def specification(source: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "kind": "text",
        "source": source,
        "tokenizer": {"type": "bpe", "vocab_size": 280},
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
        "maximum_bytes": None,
    } | changes
