"""The files of a text dataset while it is prepared, and the progress that survives its process.

``progress.json`` says where the next document of the source is and what was on the disk then. What
was written after it is cut off by whoever goes on, so that the files are those of an uninterrupted
preparation, byte for byte.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.data.token_shards import AppendedFile, ShardWriter
from harness.errors import UserError
from harness.files import read_json, sha256_of, write_json

HELDOUT_BYTES = 4_000_000
TOKENIZER, HELDOUT, PROGRESS = "tokenizer.json", "heldout.jsonl", "progress.json"
MANIFEST = "manifest.json"
# Changed files that a message names at most.
NAMED = 3


class PlacedText(NamedTuple):
    """A text, its length in UTF-8 and the split that it belongs to."""

    split: str
    text: str
    bytes: int


class PreparedFiles:
    """Shards of every split, and raw test documents, of which the first 4 MB are kept."""

    def __init__(self, folder: Path, splits: Sequence[str], dtype: np.dtype) -> None:
        """Start with no document.

        Args:
            folder: Holds ``tokenizer.json``.
            splits: One of them is ``test``.
            dtype: Of tokens.
        """
        self.folder = folder
        self.writers = {split: ShardWriter(folder, split, dtype) for split in splits}
        self.heldout = AppendedFile(folder / HELDOUT)

    @classmethod
    def resume(
        cls, folder: Path, splits: Sequence[str], dtype: np.dtype, progress: Mapping[str, Any]
    ) -> "PreparedFiles | None":
        """Return the files as they were at ``progress``, or None if they have been changed."""
        files = cls.__new__(cls)
        files.folder = folder
        files.writers = {split: ShardWriter(folder, split, dtype) for split in splits}
        heldout = AppendedFile.reopen(folder / HELDOUT, progress["heldout"])
        whole = [w.resume(progress["splits"][split]) for split, w in files.writers.items()]
        if heldout is None or not all(whole):
            return None
        files.heldout = heldout
        return files

    def total(self, count: str) -> int:
        """Return the ``documents``, ``bytes`` or ``tokens`` of all splits."""
        return sum(writer.counts[count] for writer in self.writers.values())

    def add(self, texts: Iterable[PlacedText], tokens: Iterable[np.ndarray]) -> None:
        """Append texts to their splits."""
        for placed, its_tokens in zip(texts, tokens, strict=True):
            writer = self.writers[placed.split]
            writer.add(its_tokens, placed.bytes)
            if placed.split == "test" and writer.counts["bytes"] < HELDOUT_BYTES:
                self.heldout.append((json.dumps({"text": placed.text}) + "\n").encode())

    def commit(self, origin: Mapping[str, Any], position: Any) -> None:
        """Bring everything to the disk, then the progress.

        Args:
            origin: What ``read_progress`` will compare.
            position: In the source, of the first document that was not added.
        """
        splits = {split: writer.commit() for split, writer in self.writers.items()}
        progress = {
            "origin": origin,
            "tokenizer_sha256": sha256_of(self.folder / TOKENIZER),
            "position": position,
            "splits": splits,
            "heldout": self.heldout.commit(),
        }
        write_json(self.folder / PROGRESS, progress)

    def close(self, where: str) -> dict[str, Any]:
        """End all files and return the splits of the manifest.

        Raises:
            UserError: If a split is empty.
        """
        for split, writer in self.writers.items():
            if writer.counts["documents"] == 0:
                fraction = "test" if split == "test" else "validation"
                raise UserError(f"{where}: the {split} split is empty; expected more documents, or "
                                f"a larger {fraction}_fraction")  # fmt: skip
        return {split: writer.close() for split, writer in self.writers.items()}


def read_progress(folder: Path, origin: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """Return what ``commit`` wrote if it is about the same ``origin`` and tokenizer, else None.

    Args:
        folder: Of the dataset.
        origin: Now: ``spec``, ``source`` and, for messages, the ``states`` of the source's files.
        where: File and key of the dataset for messages.

    Raises:
        UserError: If it is damaged, or says that a finished preparation is of another source.
    """
    path, tokenizer = folder / PROGRESS, folder / TOKENIZER
    if not path.is_file():
        return None
    progress = read_object(path, ("origin", "tokenizer_sha256", "position", "splits", "heldout"))
    before = progress["origin"]
    if any(before.get(key) != origin[key] for key in ("spec", "source")):
        if (folder / MANIFEST).is_file() or _is_finished(progress):
            raise UserError(source_changed(where, _changed(before, origin), folder))
        return None
    same = tokenizer.is_file() and progress["tokenizer_sha256"] == sha256_of(tokenizer)
    return progress if same else None


def source_changed(where: str, changed: str, folder: Path) -> str:
    """Return the message that ``changed`` is not what ``folder`` was prepared from."""
    return (f"{where}.source: {changed} changed since {folder} was prepared from it; expected the "
            "same content; for the new one, give the dataset another name, or move that folder "
            "away together with the runs on it")  # fmt: skip


def read_object(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """Return the JSON object that this project wrote to ``path``.

    Raises:
        UserError: If it is damaged or lacks one of ``keys``.
    """
    content = read_json(path)
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{path}: found no '{missing[0]}', expected what was written there; "
                        "move it away to have it made again")  # fmt: skip
    return content


def _is_finished(progress: Mapping[str, Any]) -> bool:
    """Return whether every split has been ended, as only the last progress says."""
    splits = progress["splits"].values()
    return all(split["open"] is None and split["counts"]["documents"] for split in splits)


def _changed(before: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    now = origin["states"]
    # Earlier versions did not write it.
    then = before.get("states", now)
    names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:NAMED]) + more or "it"
