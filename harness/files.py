"""Writing files that a reader never sees half written, and digests that prove them whole."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from harness.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` holds either the old or the whole new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial{os.getpid()}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON with its keys in the given order, atomically."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Return the content of a JSON file that this project wrote.

    Raises:
        UserError: If it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: found no JSON ({error}), expected what was written there; "
                        "move it away to have it made again") from None  # fmt: skip


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into, which becomes ``folder`` if nothing is raised.

    Raises:
        UserError: If ``folder`` is a file or has something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists; expected a new folder or an empty one")
    partial = folder.with_name(f"{folder.name}.partial{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        # Fails if another process has filled the folder in the meantime.
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def hold_folder(folder: Path) -> IO[str]:
    """Return a lock on ``folder`` until it is closed or the process ends, however it ends.

    Raises:
        UserError: If another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = (folder / "in-use.lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise UserError(
            f"{folder.resolve()}: another snakemake is at work here; wait for it, or stop it"
        ) from None
    return handle


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
