"""Files one after the other, cut into parts of bounded size, with a digest of each of both."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

BLOCK = 1 << 20


def write_parts(files: Mapping[str, Path], folder: Path, part_size: int) -> dict[str, Any]:
    """Write ``files`` into parts of at most ``part_size`` bytes and return what is in them.

    Args:
        files: Source of each file by its path in the bundle.
        folder: Gets ``part-0001.bin`` and so on.
        part_size: Bytes of every part but the last, which may be shorter.

    Returns:
        ``parts`` (name, size, sha256) and ``files`` (path, size, sha256) in their order.
    """
    entries = []
    with _Parts(folder, part_size) as parts:
        for path, source in files.items():
            digest, size = hashlib.sha256(), 0
            for block in _blocks(source):
                parts.write(block)
                digest.update(block)
                size += len(block)
            entries.append({"path": path, "size": size, "sha256": digest.hexdigest()})
    return {"parts": parts.entries, "files": entries}


def _blocks(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


class _Parts(ExitStack):
    """A sequence of files that take what is written, each up to a size."""

    def __init__(self, folder: Path, size: int) -> None:
        super().__init__()
        self.folder, self.size = folder, size
        self.entries: list[dict[str, Any]] = []
        self.file: IO[bytes] | None = None
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> None:
        while content:
            if self.file is None or self.entries[-1]["size"] == self.size:
                self._next()
            assert self.file is not None
            piece = content[: self.size - self.entries[-1]["size"]]
            self.file.write(piece)
            self.digest.update(piece)
            self.entries[-1]["size"] += len(piece)
            self.entries[-1]["sha256"] = self.digest.hexdigest()
            content = content[len(piece) :]

    def _next(self) -> None:
        self.close()
        name = f"part-{len(self.entries) + 1:04d}.bin"
        self.entries.append({"name": name, "size": 0})
        self.file = self.enter_context((self.folder / name).open("wb"))
        self.digest = hashlib.sha256()
