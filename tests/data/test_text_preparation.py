"""Prepared tokens are those of `tokenizers`; an interruption anywhere changes no byte of them."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from text_corpora import make_texts, specification, write_parquet
from tokenizers import Tokenizer, models

from harness.data.prepared_files import PreparedFiles
from harness.data.text import SPLITS, TokenStream, prepare_text, read_heldout, read_manifest
from harness.data.text_sources import open_source
from harness.data.token_shards import ShardWriter
from harness.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def share_of(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8


def test_tokens_are_those_of_each_text_alone(spec, tmp_path, small_pieces):
    prepare_text(spec, tmp_path / "out", "test")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    expected = {split: [] for split in SPLITS}
    texts = {split: [] for split in SPLITS}
    for document in open_source(spec["source"], "test"):
        place = share_of(document.name)
        split = "test" if place < 0.1 else "validation" if place < 0.2 else "train"
        expected[split] += [*tokenizer.encode(document.text).ids, end]
        texts[split].append(document.text)
    manifest = read_manifest(tmp_path / "out")
    for split in SPLITS:
        stream = TokenStream(tmp_path / "out", split)
        np.testing.assert_array_equal(stream.read(0, len(stream)), expected[split])
        entry = manifest["splits"][split]
        assert entry["bytes"] == sum(len(text.encode()) for text in texts[split])
        assert entry["documents"] == len(texts[split])
    assert len(manifest["splits"]["train"]["shards"]) > 1
    assert read_heldout(tmp_path / "out") == texts["test"]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, "uint16"), (65_537, "uint32")])
def test_shards_have_the_smallest_type_that_holds_every_token(vocab_size, dtype, spec, tmp_path):
    words = {str(index): index for index in range(vocab_size - 1)}
    file = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel(words, unk_token="0")).save(str(file))
    spec["tokenizer"] = {"type": "tokenizer_file", "path": str(file)}
    manifest = prepare_text(spec, tmp_path / "out", "test")
    assert manifest["vocab_size"] == vocab_size
    assert manifest["splits"]["train"]["dtype"] == dtype


def test_the_end_of_text_that_a_text_spells_out_ends_no_document(tmp_path):
    texts = [f"{index} <|endoftext|> more" for index in range(60)]
    write_parquet(tmp_path / "corpus" / "a.parquet", texts, group=60)
    source = {"type": "local", "path": str(tmp_path / "corpus"), "column": "text"}
    manifest = prepare_text(specification(source), tmp_path / "out", "test")
    end = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).token_to_id("<|endoftext|>")
    for split in SPLITS:
        stream = TokenStream(tmp_path / "out", split)
        ends = (stream.read(0, len(stream)) == end).sum()
        assert ends == manifest["splits"][split]["documents"]


def test_the_number_of_threads_changes_no_byte(spec, tmp_path, small_pieces, monkeypatch):
    for parallel in ("false", "true"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        prepare_text(spec, tmp_path / parallel, "test")
    assert contents(tmp_path / "false") == contents(tmp_path / "true")


class Stop(Exception):
    pass


def interrupt(monkeypatch, owner: type, method: str, count: int) -> None:
    """Raise before the call number ``count``."""
    original, calls = getattr(owner, method), iter(range(count))

    def limited(*arguments):
        if next(calls, None) is None:
            raise Stop
        return original(*arguments)

    monkeypatch.setattr(owner, method, limited)


@pytest.mark.parametrize("add", [0, 1, 70, 155, 156, 157, 299])
def test_an_interruption_between_documents_changes_no_byte(add, spec, tmp_path, small_pieces):
    prepare_text(spec, tmp_path / "whole", "test")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, ShardWriter, "add", add)
        with pytest.raises(Stop):
            prepare_text(spec, tmp_path / "out", "test")
    assert not (tmp_path / "out" / "manifest.json").exists()
    prepare_text(spec, tmp_path / "out", "test")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_many_interruptions_lose_little_and_change_no_byte(spec, tmp_path, small_pieces):
    prepare_text(spec, tmp_path / "whole", "test")
    added = 0
    original = ShardWriter.add

    def counted(*arguments):
        nonlocal added
        added += 1
        return original(*arguments)

    for _ in range(30):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ShardWriter, "add", counted)
            interrupt(patch, PreparedFiles, "commit", 2)
            try:
                prepare_text(spec, tmp_path / "out", "test")
                break
            except Stop:
                pass
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    # Every attempt keeps one commit and repeats at most the next one's documents.
    assert 300 < added <= 2 * 300 + 40


KILLED = """
import os, signal, sys, json
from pathlib import Path
import harness.data.text as text, harness.data.token_shards as shards
shards.SHARD_TOKENS, text.BATCH_BYTES, text.COMMIT_BYTES = 5000, 1000, 4000
original, left = shards.ShardWriter.add, [int(sys.argv[3])]
def add(*arguments):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
shards.ShardWriter.add = add
text.prepare_text(json.loads(sys.argv[1]), Path(sys.argv[2]), "test")
"""


def test_kill_9_changes_no_byte(spec, tmp_path, small_pieces):
    prepare_text(spec, tmp_path / "whole", "test")
    command = [sys.executable, "-c", KILLED, json.dumps(spec), str(tmp_path / "out"), "110"]
    for _ in range(2):
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    progress = json.loads((tmp_path / "out" / "progress.json").read_text())
    done = sum(split["counts"]["documents"] for split in progress["splits"].values())
    assert 110 < done < 220
    prepare_text(spec, tmp_path / "out", "test")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["finished shard", "open shard", "source", "tokenizer"])
def test_what_changed_since_the_interruption_starts_over(
    damage, spec, corpus, tmp_path, small_pieces, monkeypatch
):
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, ShardWriter, "add", 200)
        with pytest.raises(Stop):
            prepare_text(spec, tmp_path / "out", "test")
    if damage == "source":
        (corpus / "c0.txt").write_text("another text")
    elif damage == "tokenizer":
        (tmp_path / "out" / "tokenizer.json").write_text("{}")
    else:
        shard = "train-00000.bin" if damage == "finished shard" else "test-00000.bin"
        content = bytearray((tmp_path / "out" / shard).read_bytes())
        content[0] ^= 1
        (tmp_path / "out" / shard).write_bytes(content)
    prepare_text(spec, tmp_path / "out", "test")
    prepare_text(spec, tmp_path / "whole", "test")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_preparation_is_not_repeated(spec, tmp_path, small_pieces, monkeypatch):
    prepare_text(spec, tmp_path / "out", "test")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    interrupt(monkeypatch, ShardWriter, "add", 0)
    prepare_text(spec, tmp_path / "out", "test")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("manifest", ["kept", "deleted"])
@pytest.mark.parametrize("added", ['{"text": "more"}\n', "{oops\n"])
def test_what_a_finished_preparation_wrote_is_not_overwritten(
    added, manifest, spec, corpus, tmp_path, small_pieces
):
    prepare_text(spec, tmp_path / "out", "test")
    if manifest == "deleted":
        (tmp_path / "out" / "manifest.json").unlink()
    before = contents(tmp_path / "out")
    with (corpus / "b.jsonl").open("a") as file:
        file.write(added)
    message = rf"^test\.source: '{corpus}/b\.jsonl' changed since {tmp_path}/out .* another name"
    with pytest.raises(UserError, match=message):
        prepare_text(spec, tmp_path / "out", "test")
    assert contents(tmp_path / "out") == before


def test_prepared_data_from_a_bundle_need_no_source(spec, corpus, tmp_path):
    manifest = prepare_text(spec, tmp_path / "out", "test")
    (tmp_path / "out" / "progress.json").unlink()
    corpus.rename(tmp_path / "elsewhere")
    assert prepare_text(spec, tmp_path / "out", "test") == manifest
    (tmp_path / "out" / "test-00000.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"test-00000\.bin: shard differs from its digest"):
        prepare_text(spec, tmp_path / "out", "test")


@pytest.mark.parametrize("content", ['{"kind": "te', "{}", "[]", '{"kind": "text", "spec": {}}'])
def test_a_damaged_manifest_is_named_in_one_line(content, spec, tmp_path):
    prepare_text(spec, tmp_path, "test")
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=rf"^{tmp_path}/manifest\.json: found no .*expected"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ['{"origin"', "{}"])
def test_a_damaged_progress_is_named_in_one_line(content, spec, tmp_path):
    prepare_text(spec, tmp_path / "out", "test")
    (tmp_path / "out" / "progress.json").write_text(content)
    with pytest.raises(UserError, match=r"out/progress\.json: found no .*expected"):
        prepare_text(spec, tmp_path / "out", "test")


def test_reading_stops_after_maximum_bytes(spec, tmp_path, small_pieces):
    spec["maximum_bytes"] = 20_000
    manifest = prepare_text(spec, tmp_path / "out", "test")
    read = sum(split["bytes"] for split in manifest["splits"].values())
    longest = max(len(text.encode()) for seed in range(3) for text in make_texts(seed, 150))
    assert 20_000 <= read < 20_000 + longest


def test_an_empty_split_is_refused_in_one_line(spec, tmp_path):
    spec["test_fraction"] = 1e-6
    with pytest.raises(UserError, match=r"^test: the test split is empty; .* test_fraction$"):
        prepare_text(spec, tmp_path / "out", "test")


MEASURED = """
import sys
from pathlib import Path
import harness.data.text as text
from harness.data.text_sources import Document, Source
text.BATCH_BYTES, text.COMMIT_BYTES = 1 << 16, 1 << 20

class Generated(Source):
    def __init__(self, count):
        self.count, self.next = count, 0
    def __iter__(self):
        while self.next < self.count:
            self.next += 1
            yield Document(f"document {self.next}", "four " * 800)
    def position(self):
        return self.next
    def go_to(self, position):
        self.next = position
    def origin(self):
        return self.count
    def states(self):
        return {}

for count in (300, 1500):
    text.open_source = lambda source, where: Generated(count)
    spec = {"source": None, "tokenizer": {"type": "bytes"}, "validation_fraction": 0.1,
            "test_fraction": 0.1, "maximum_bytes": None}
    text.prepare_text(spec, Path(sys.argv[1]) / str(count), "test")
    # The peak of getrusage would be that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    print("KiB", status.partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    command = [sys.executable, "-c", MEASURED, str(tmp_path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    small, large = (int(line.split()[1]) for line in lines if line.startswith("KiB"))
    # The additional 4.8 MB of text are 9.6 MB of tokens.
    assert large - small < 5 * 1024
