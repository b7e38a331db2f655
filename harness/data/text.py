"""Text that is tokenised once into memory-mapped shards, with a manifest that proves them whole.

A prepared dataset is a folder with ``manifest.json``, ``tokenizer.json``, token shards of each
split and the raw text of the first test documents, from which evaluation tasks are built.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from harness.data.digests import has_digest
from harness.data.encoding import BATCH_BYTES, encode_in_order, token_dtype
from harness.data.prepared_files import (
    MANIFEST,
    PROGRESS,
    TOKENIZER,
    PlacedText,
    PreparedFiles,
    read_object,
    read_progress,
)
from harness.data.text_sources import Document, Source, open_source
from harness.data.tokenizers import load_tokenizer, make_tokenizer
from harness.errors import UserError
from harness.files import sha256_of, write_atomically, write_json

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
# Text between two states of the progress: seconds of work.
COMMIT_BYTES = 1 << 26
_MANIFEST_KEYS = {
    "text": ("vocab_size", "tokenizer_sha256", "splits"),
    "images": ("classes", "channels", "size", "mean", "std", "splits"),
}


def prepare_text(spec: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Tokenise the source of ``spec`` into ``folder`` and return the manifest.

    A preparation that was interrupted, however it ended, goes on from its last progress. What a
    finished one wrote is not overwritten with other text.

    Args:
        spec: Resolved specification of a text dataset.
        folder: Where shards, tokenizer and manifest go.
        where: File and key of the dataset for messages.

    Raises:
        UserError: If the source or tokenizer is missing, the source is not that of a finished
            preparation, or a split comes out empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).is_file() and not (folder / PROGRESS).is_file():
        # From a bundle: it is whole, and its source need not be on this machine.
        for split in SPLITS:
            TokenStream(folder, split)
        return read_manifest(folder)
    source = open_source(spec["source"], where)
    origin = {"spec": spec, "source": source.origin(), "states": source.states()}
    tokenizer, files = _begin(spec, folder, where, source, origin)
    committed = files.total("bytes")
    batches = _batches(source, spec, where, seen=committed)
    for batch, tokens in encode_in_order(tokenizer, batches, _texts):
        files.add(batch.texts, tokens)
        if files.total("bytes") - committed >= COMMIT_BYTES:
            files.commit(origin, batch.position)
            committed = files.total("bytes")
            print(f"{folder.name}: {files.total('tokens'):,} tokens of {committed:,} bytes")
    manifest = {
        "kind": "text",
        "spec": spec,
        "vocab_size": tokenizer.get_vocab_size(),
        "tokenizer_sha256": sha256_of(folder / TOKENIZER),
        "splits": files.close(where),
    }
    files.commit(origin, source.position())
    write_json(folder / MANIFEST, manifest)
    return manifest


def _begin(
    spec: Mapping[str, Any], folder: Path, where: str, source: Source, origin: Mapping[str, Any]
) -> tuple[Tokenizer, PreparedFiles]:
    """Return tokenizer and files as the last progress left them, else new ones."""
    progress = read_progress(folder, origin, where)
    if progress is not None:
        tokenizer = load_tokenizer(folder)
        files = PreparedFiles.resume(folder, SPLITS, token_dtype(tokenizer), progress)
        if files is not None:
            source.go_to(progress["position"])
            return tokenizer, files
        print(f"{folder}: files differ from progress.json; starting over")
    beginning = open_source(spec["source"], where)
    placed = (text for batch in _batches(beginning, spec, where) for text in batch.texts)
    training_texts = (text for split, text, _ in placed if split == "train")
    tokenizer = make_tokenizer(spec["tokenizer"], training_texts, where)
    write_atomically(folder / TOKENIZER, tokenizer.to_str().encode())
    files = PreparedFiles(folder, SPLITS, token_dtype(tokenizer))
    files.commit(origin, source.position())
    return tokenizer, files


class _Batch(NamedTuple):
    texts: list[PlacedText]
    position: Any


def _texts(batch: _Batch) -> list[str]:
    return [placed.text for placed in batch.texts]


def _batches(
    source: Source, spec: Mapping[str, Any], where: str, seen: int = 0
) -> Iterator[_Batch]:
    """Yield about ``BATCH_BYTES`` of text at a time and the position after them."""
    limit = spec["maximum_bytes"]
    texts: list[PlacedText] = []
    size = 0
    for document in source:
        if limit is not None and seen + size >= limit:
            break
        texts.append(_place(document, spec, where))
        size += texts[-1].bytes
        if size >= BATCH_BYTES:
            yield _Batch(texts, source.position())
            texts, seen, size = [], seen + size, 0
    if texts:
        yield _Batch(texts, source.position())


def _place(document: Document, spec: Mapping[str, Any], where: str) -> PlacedText:
    """Assign a whole document to a split by the hash of its name, whatever the order."""
    place = int(hashlib.sha256(document.name.encode()).hexdigest()[:8], 16) / 16**8
    try:
        size = len(document.text.encode())
    except UnicodeEncodeError as error:
        raise UserError(f"{where}.source: '{document.name}' is not valid Unicode text ({error})"
                        ) from None  # fmt: skip
    split: Split = "train"
    if place < spec["test_fraction"]:
        split = "test"
    elif place < spec["test_fraction"] + spec["validation_fraction"]:
        split = "validation"
    return PlacedText(split, document.text, size)


class TokenStream:
    """The tokens of one split as one sequence over memory-mapped shards."""

    def __init__(self, folder: Path, split: Split) -> None:
        """Map the shards of ``split``.

        Raises:
            UserError: If a shard is missing or is not what the manifest says it was.
        """
        entry = read_manifest(folder)["splits"][split]
        self.bytes_per_token = entry["bytes"] / entry["tokens"]
        self._shards = [_open_shard(folder, shard, entry["dtype"]) for shard in entry["shards"]]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """Return ``count`` tokens from position ``start`` as int64."""
        pieces = []
        while count > 0:
            shard = int(np.searchsorted(self._starts, start, side="right")) - 1
            offset = start - int(self._starts[shard])
            piece = self._shards[shard][offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(pieces).astype(np.int64)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a prepared dataset.

    Raises:
        UserError: If the dataset was not prepared or its manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a dataset that 'snakemake' has prepared")
    kind = str(read_object(path, ("spec",)).get("kind"))
    return read_object(path, _MANIFEST_KEYS.get(kind, ()))


def read_heldout(folder: Path) -> list[str]:
    """Return the raw test documents kept for evaluation tasks."""
    lines = (folder / "heldout.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def _open_shard(folder: Path, shard: Mapping[str, Any], dtype: str) -> np.ndarray:
    path = folder / shard["file"]
    if not has_digest(path, shard["sha256"]):
        state = "differs from its digest" if path.is_file() else "is missing"
        raise UserError(
            f"{path}: shard {state} (expected sha256 {shard['sha256'][:12]}...); delete "
            f"{folder / MANIFEST} to prepare the dataset again"
        )
    return np.memmap(path, dtype=dtype, mode="r")
