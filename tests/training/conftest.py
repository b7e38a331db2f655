"""A small prepared text that the tests of training share."""

from pathlib import Path

import numpy as np
import pytest

from harness.data.text import prepare_text


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    texts = tmp_path_factory.mktemp("source")
    words = np.random.default_rng(0).choice(["spam ", "eggs ", "ham\n"], (40, 300))
    for index, document in enumerate(words):
        (texts / f"{index}.txt").write_text("".join(document))
    spec = {
        "kind": "text",
        "source": {"type": "local", "path": str(texts), "column": "text"},
        "tokenizer": {"type": "bytes"},
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
        "maximum_bytes": None,
    }
    prepare_text(spec, folder, "test")
    return folder
