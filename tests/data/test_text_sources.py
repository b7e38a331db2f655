"""Sources are read in a stable order from any position, and their mistakes take one line."""

import json
from itertools import islice
from types import SimpleNamespace

import pytest
from text_corpora import make_texts, specification, write_parquet
from tokenizers import Tokenizer

from harness.data.text import prepare_text
from harness.data.text_sources import open_source
from harness.errors import UserError

HUB = {"type": "huggingface", "path": "some/corpus", "name": None, "split": "train",
       "column": "text", "revision": None, "files": "sample/*.parquet"}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A copy of the hub's files below HARNESS_DATA, and a hub that streams the same ones."""
    files = []
    for index, count in enumerate((70, 1, 50)):
        files.append(tmp_path / "data" / "some/corpus" / "sample" / f"{index}.parquet")
        write_parquet(files[-1], make_texts(index, count), group=30)
    from datasets import load_dataset

    def stream(path, name, *, split, revision, streaming):
        assert (path, name, revision, streaming) == ("some/corpus", None, "c0ffee", True)
        return load_dataset("parquet", data_files=[str(f) for f in files], split=split,
                            streaming=True)  # fmt: skip

    def info(api, path, revision):
        assert (path, revision) == ("some/corpus", None)
        return SimpleNamespace(sha="c0ffee")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", info)
    monkeypatch.setattr("datasets.load_dataset", stream)
    return tmp_path / "data"


def test_every_position_of_files_can_be_gone_on_from(corpus):
    source = {"type": "local", "path": str(corpus), "column": "text"}
    everything = list(open_source(source, "test"))
    texts = [*make_texts(0, 150), *make_texts(1, 120)]
    assert [document.text for document in everything[:270]] == texts
    for count in range(0, 301, 7):
        first, second = open_source(source, "test"), open_source(source, "test")
        read = list(islice(first, count))
        second.go_to(json.loads(json.dumps(first.position())))
        assert read + list(second) == everything


def test_every_position_of_the_hub_can_be_gone_on_from(hub):
    everything = list(open_source(HUB, "test"))
    assert len(everything) == 121
    for count in (0, 1, 29, 70, 71, 120):
        first, second = open_source(HUB, "test"), open_source(HUB, "test")
        read = list(islice(first, count))
        second.go_to(json.loads(json.dumps(first.position())))
        assert read + list(second) == everything


def test_a_copy_gives_the_tokens_of_the_hub(hub, tmp_path, monkeypatch):
    streamed = prepare_text(specification(HUB), tmp_path / "stream", "test")
    monkeypatch.setenv("HARNESS_DATA", str(hub))
    monkeypatch.delattr("datasets.load_dataset")
    assert prepare_text(specification(HUB), tmp_path / "copy", "test") == streamed


def test_an_unfinished_download_is_refused(hub, monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", str(hub))
    partial = hub / "some/corpus/.cache/huggingface/download/sample/x.incomplete"
    partial.parent.mkdir(parents=True)
    partial.touch()
    with pytest.raises(UserError, match="incomplete; expected the end of: hf download some/corpus"):
        open_source(HUB, "datasets.yaml: corpus")


@pytest.mark.parametrize("root", [None, "elsewhere"])
def test_without_network_and_copy_one_line_says_what_to_fetch(root, tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise ConnectionError("no route to host\nmore lines")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    if root is not None:
        monkeypatch.setenv("HARNESS_DATA", str(tmp_path / root))
    with pytest.raises(UserError) as caught:
        open_source(HUB, "datasets.yaml: corpus")
    message = str(caught.value)
    place = "HARNESS_DATA is not set" if root is None else f"'{tmp_path}/elsewhere/some/corpus' has"
    for part in ("datasets.yaml: corpus.source.path: 'some/corpus'", "no route to host", place,
                 "hf download some/corpus --repo-type dataset --include 'sample/*.parquet' "
                 '--local-dir "$HARNESS_DATA/some/corpus"'):  # fmt: skip
        assert part in message
    assert "\n" not in message


def test_the_copy_of_a_hub_tokenizer_is_used(tmp_path, monkeypatch, spec):
    spec["tokenizer"] = {"type": "huggingface", "path": "some/model"}
    copy = tmp_path / "data" / "some/model" / "tokenizer.json"
    copy.parent.mkdir(parents=True)
    tokenizer = Tokenizer.from_str('{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel",'
                                   '"vocab":{"[UNK]":0,"ham":1},"unk_token":"[UNK]"}}')  # fmt: skip
    tokenizer.enable_truncation(2)
    tokenizer.save(str(copy))
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    manifest = prepare_text(spec, tmp_path / "out", "test")
    assert manifest["vocab_size"] == 3
    saved = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert saved.token_to_id("<|endoftext|>") == 2
    assert saved.truncation is None


def test_a_hub_tokenizer_that_is_nowhere_takes_one_line(tmp_path, monkeypatch, spec):
    spec["tokenizer"] = {"type": "huggingface", "path": "some/model"}
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))

    class Offline:
        @staticmethod
        def from_pretrained(path):
            raise OSError("offline\nmore")

    monkeypatch.setattr("harness.data.tokenizers.Tokenizer", Offline)
    with pytest.raises(UserError) as caught:
        prepare_text(spec, tmp_path / "out", "datasets.yaml: x")
    assert "hf download some/model tokenizer.json --local-dir" in str(caught.value)
    assert "\n" not in str(caught.value)


MISTAKES = {
    "a.jsonl": ('{"text": "a"}\n\n{"text": 5}\n', r"'text' of line 3 of .*a\.jsonl holds 5"),
    "b.jsonl": ('{"text": "a"}\n{"text"\n', r"line 2 of .*b\.jsonl is not JSON"),
    "c.jsonl": ("[1]\n", r"line 1 of .*c\.jsonl is not a JSON object"),
    "d.jsonl": ('{"txt": "a"}\n', r"line 1 of .* has no column 'text' \(did you mean 'txt'\?\)"),
    "e.parquet": ("text", r"e\.parquet' is not a Parquet file"),
    "f.jsonl": ('{"text": "\\ud800"}\n', r"'f\.jsonl:0' is not valid Unicode text"),
    "g.csv": ("text", r"no \.txt, \.jsonl, \.parquet file in"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_files_are_named_in_one_line(name, tmp_path):
    content, message = MISTAKES[name]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / name).write_text(content)
    source = {"type": "local", "path": str(tmp_path / "corpus"), "column": "text"}
    with pytest.raises(UserError, match=message) as caught:
        prepare_text(specification(source), tmp_path / "out", "datasets.yaml: x")
    assert str(caught.value).startswith("datasets.yaml: x.source")
    assert "\n" not in str(caught.value)


def test_the_line_that_is_not_utf_8_is_named(tmp_path):
    lines = [b'{"text": "a"}\n'] * 3000 + [b'{"text": "\xfc"}\n']
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    source = {"type": "local", "path": str(tmp_path), "column": "text"}
    message = r"^datasets\.yaml: x\.source\.path: line 3001 of .*a\.jsonl is not UTF-8"
    with pytest.raises(UserError, match=message):
        list(open_source(source, "datasets.yaml: x"))


def test_a_parquet_file_that_is_damaged_inside_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, make_texts(0, 300), group=100)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    source = {"type": "local", "path": str(tmp_path), "column": "text"}
    with pytest.raises(UserError, match=r"a\.parquet' is damaged at row 100 or after") as caught:
        list(open_source(source, "datasets.yaml: x"))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    source = open_source({"type": "local", "path": str(tmp_path), "column": "text"}, "x")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(UserError, match=r"a\.jsonl' cannot be read \(.*Permission denied"):
        list(source)


def test_a_parquet_row_without_text_is_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["a", "b", None, "c"], group=2)
    source = {"type": "local", "path": str(tmp_path), "column": "text"}
    documents = open_source(source, "datasets.yaml: x")
    documents.go_to([0, 1, 1])
    with pytest.raises(UserError, match=r"'text' of row 2 of .*a\.parquet holds None, expected"):
        list(documents)
    with pytest.raises(UserError, match=r"has no column 'txt' \(did you mean 'text'\?\)"):
        list(open_source(source | {"column": "txt"}, "datasets.yaml: x"))
