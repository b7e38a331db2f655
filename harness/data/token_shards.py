"""Token shards that are appended to document by document and outlive the process that writes them.

What is on disk after ``commit`` can be proven and continued from the state that it returns.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from harness.files import sha256_of

SHARD_TOKENS = 1 << 27


class AppendedFile:
    """A file that grows, and the digest of what was appended so far."""

    def __init__(self, path: Path) -> None:
        """Make ``path`` an empty file."""
        self.path = path
        self.bytes = 0
        self.hash = hashlib.sha256()
        self.file: IO[bytes] = path.open("wb")

    @classmethod
    def reopen(cls, path: Path, state: Mapping[str, Any]) -> "AppendedFile | None":
        """Return the file as it was at ``state``, or None if that much of it is not there."""
        appended = cls.__new__(cls)
        appended.path, appended.bytes = path, state["bytes"]
        appended.hash = _hash_of_start(path, appended.bytes)
        if appended.hash.hexdigest() != state["sha256"]:
            return None
        appended.file = path.open("r+b")
        appended.file.truncate(appended.bytes)
        appended.file.seek(appended.bytes)
        return appended

    def append(self, content: bytes) -> None:
        """Write ``content`` at the end."""
        self.file.write(content)
        self.hash.update(content)
        self.bytes += len(content)

    def commit(self) -> dict[str, Any]:
        """Bring everything to the disk and return the state for ``reopen``."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return {"bytes": self.bytes, "sha256": self.hash.hexdigest()}

    def close(self) -> dict[str, Any]:
        """Bring everything to the disk, close the file and return its state."""
        state = self.commit()
        self.file.close()
        return state


class ShardWriter:
    """Appends the documents of one split to shards and keeps the counts for the manifest."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype) -> None:
        """Write ``<split>-00000.bin`` and so on into ``folder``, as tokens of ``dtype``."""
        self.folder, self.split, self.dtype = folder, split, dtype
        self.counts = {"documents": 0, "bytes": 0, "tokens": 0}
        self.shards: list[dict[str, Any]] = []
        self.open: AppendedFile | None = None

    def resume(self, state: Mapping[str, Any]) -> bool:
        """Go on from ``state``; False if the files are not what they were then."""
        self.counts, self.shards = dict(state["counts"]), list(state["shards"])
        for shard in self.shards:
            path = self.folder / shard["file"]
            if not path.is_file() or sha256_of(path) != shard["sha256"]:
                return False
        if state["open"] is not None:
            self.open = AppendedFile.reopen(self._next_path(), state["open"])
        return state["open"] is None or self.open is not None

    def add(self, tokens: np.ndarray, text_bytes: int) -> None:
        """Append one document.

        Args:
            tokens: Including the one that ends the text.
            text_bytes: Length of the text in UTF-8.
        """
        self.counts["documents"] += 1
        self.counts["bytes"] += text_bytes
        self.counts["tokens"] += len(tokens)
        while len(tokens):
            if self.open is None:
                self.open = AppendedFile(self._next_path())
            room = SHARD_TOKENS - self.open.bytes // self.dtype.itemsize
            self.open.append(tokens[:room].tobytes())
            if len(tokens) >= room:
                self._finish(self.open)
            tokens = tokens[room:]

    def commit(self) -> dict[str, Any]:
        """Bring everything to the disk and return the state for ``resume``."""
        opened = None if self.open is None else self.open.commit()
        return {"counts": dict(self.counts), "shards": list(self.shards), "open": opened}

    def close(self) -> dict[str, Any]:
        """End the last shard and return the split's entry of the manifest."""
        if self.open is not None:
            self._finish(self.open)
        return {**self.counts, "dtype": self.dtype.name, "shards": self.shards}

    def _finish(self, shard: AppendedFile) -> None:
        state = shard.close()
        tokens = state["bytes"] // self.dtype.itemsize
        self.shards.append({"file": shard.path.name, "tokens": tokens, "sha256": state["sha256"]})
        self.open = None

    def _next_path(self) -> Path:
        return self.folder / f"{self.split}-{len(self.shards):05d}.bin"


def _hash_of_start(path: Path, count: int) -> "hashlib._Hash":
    """Return the hash of the first ``count`` bytes of a file, of fewer if it is shorter."""
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while count > 0 and (block := file.read(min(count, 1 << 20))):
                digest.update(block)
                count -= len(block)
    return digest
