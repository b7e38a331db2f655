"""Files that hold no tokenizer are refused in one line that names them."""

import json

import pytest

from harness.data.tokenizers import load_tokenizer, make_tokenizer
from harness.errors import UserError

VOCABULARY = json.dumps({"a": 0, "b": 1, "ab": 2})


@pytest.mark.parametrize("content", [None, "", "{", "{}", VOCABULARY, '{"model": 5}'])
def test_what_is_no_tokenizer_file_is_named(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    spec = {"type": "tokenizer_file", "path": str(path)}
    message = rf"^x\.tokenizer\.path: '{path}': cannot be loaded \(.*\); expected .* gpt2_files$"
    with pytest.raises(UserError, match=message):
        make_tokenizer(spec, [], "x")
    with pytest.raises(UserError, match=rf"^{path}: cannot be loaded .*to prepare it again$"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("vocabulary", "merges"), [("{", "a b\n"), (VOCABULARY, "a b c\n")])
def test_what_are_no_gpt2_files_is_named(vocabulary, merges, tmp_path):
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(merges)
    spec = {"type": "gpt2_files", "vocabulary": str(tmp_path / "vocab.json"),
            "merges": str(tmp_path / "merges.txt")}  # fmt: skip
    with pytest.raises(UserError, match=r"^x\.tokenizer: '.*vocab\.json' with '.*merges\.txt': "):
        make_tokenizer(spec, [], "x")
