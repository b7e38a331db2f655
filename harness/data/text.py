"""Text that is tokenised once into memory-mapped shards, with a manifest that proves them whole.

A prepared dataset is a folder with ``manifest.json``, ``tokenizer.json``, token shards of each
split and the raw text of the first test documents, from which evaluation tasks are built.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from harness.data.text_sources import Document, read_documents
from harness.data.tokenizers import END_OF_TEXT, make_tokenizer
from harness.errors import UserError
from harness.files import sha256_of, write_atomically, write_json

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SHARD_TOKENS = 1 << 27
HELDOUT_BYTES = 4_000_000


def prepare_text(spec: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Tokenise the source of ``spec`` into ``folder`` and return the manifest.

    Args:
        spec: Resolved specification of a text dataset.
        folder: Where shards, tokenizer and manifest go.
        where: File and key of the dataset for messages.

    Raises:
        UserError: If the source or tokenizer is missing or a split comes out empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    training_texts = (doc.text for split, doc in _split(spec, where) if split == "train")
    tokenizer = make_tokenizer(spec["tokenizer"], training_texts, where)
    write_atomically(folder / "tokenizer.json", tokenizer.to_str().encode())
    writers = {split: _SplitWriter(folder, split, tokenizer) for split in SPLITS}
    heldout: list[str] = []
    room = HELDOUT_BYTES
    for batch in _batched(_split(spec, where), 256):
        for split in SPLITS:
            texts = [doc.text for its_split, doc in batch if its_split == split]
            writers[split].add(texts)
            if split == "test":
                for text in texts:
                    room -= len(text.encode())
                    if room > 0:
                        heldout.append(text)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in heldout)
    write_atomically(folder / "heldout.jsonl", lines.encode())
    manifest = {
        "kind": "text",
        "spec": spec,
        "vocab_size": tokenizer.get_vocab_size(),
        "tokenizer_sha256": sha256_of(folder / "tokenizer.json"),
        "splits": {split: writer.close(where) for split, writer in writers.items()},
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def _split(spec: Mapping[str, Any], where: str) -> Iterator[tuple[Split, Document]]:
    """Assign whole documents to splits by the hash of their name, whatever their order."""
    seen = 0
    for document in read_documents(spec["source"], where):
        if spec["maximum_bytes"] is not None and seen >= spec["maximum_bytes"]:
            return
        seen += len(document.text.encode())
        place = int(hashlib.sha256(document.name.encode()).hexdigest()[:8], 16) / 16**8
        if place < spec["test_fraction"]:
            yield "test", document
        elif place < spec["test_fraction"] + spec["validation_fraction"]:
            yield "validation", document
        else:
            yield "train", document


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class _SplitWriter:
    """Appends tokens of one split to shards and keeps the counts for the manifest."""

    def __init__(self, folder: Path, split: Split, tokenizer: Tokenizer) -> None:
        self.folder, self.split, self.tokenizer = folder, split, tokenizer
        self.end = tokenizer.token_to_id(END_OF_TEXT)
        self.dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
        self.counts = {"documents": 0, "bytes": 0, "tokens": 0}
        self.shards: list[dict[str, Any]] = []
        self.pending: list[np.ndarray] = []
        self.pending_tokens = 0

    def add(self, texts: list[str]) -> None:
        for text, encoding in zip(texts, self.tokenizer.encode_batch_fast(texts), strict=True):
            tokens = np.array([*encoding.ids, self.end], dtype=self.dtype)
            self.counts["documents"] += 1
            self.counts["bytes"] += len(text.encode())
            self.counts["tokens"] += len(tokens)
            self.pending.append(tokens)
            self.pending_tokens += len(tokens)
        while self.pending_tokens >= SHARD_TOKENS:
            self._flush(SHARD_TOKENS)

    def _flush(self, count: int) -> None:
        tokens = np.concatenate(self.pending)
        path = self.folder / f"{self.split}-{len(self.shards):05d}.bin"
        write_atomically(path, tokens[:count].tobytes())
        self.shards.append({"file": path.name, "tokens": min(count, len(tokens)),
                            "sha256": sha256_of(path)})  # fmt: skip
        self.pending = [tokens[count:]]
        self.pending_tokens = len(self.pending[0])

    def close(self, where: str) -> dict[str, Any]:
        if self.counts["documents"] == 0:
            raise UserError(
                f"{where}: the {self.split} split is empty; expected more documents, or a larger "
                f"{'test' if self.split == 'test' else 'validation'}_fraction"
            )
        if self.pending_tokens:
            self._flush(self.pending_tokens)
        return {**self.counts, "dtype": np.dtype(self.dtype).name, "shards": self.shards}


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
        UserError: If the dataset was not prepared.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a dataset that 'snakemake' has prepared")
    return json.loads(path.read_text())


def read_heldout(folder: Path) -> list[str]:
    """Return the raw test documents kept for evaluation tasks."""
    lines = (folder / "heldout.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def _open_shard(folder: Path, shard: Mapping[str, Any], dtype: str) -> np.ndarray:
    path = folder / shard["file"]
    if not path.is_file() or sha256_of(path) != shard["sha256"]:
        state = "differs from its digest" if path.is_file() else "is missing"
        raise UserError(
            f"{path}: shard {state} (expected sha256 {shard['sha256'][:12]}...); delete "
            f"{folder / 'manifest.json'} to prepare the dataset again"
        )
    return np.memmap(path, dtype=dtype, mode="r")
