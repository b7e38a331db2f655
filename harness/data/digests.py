"""Digests of prepared files that are computed once, not by each of many runs that read them.

``verified.json`` beside the files notes size and times of each file whose digest was found right.
A file whose note still fits is not read again. The note holds the time of the inode's last change,
which no program can set: any write, also one that restores the time of modification, makes the
digest count again. What only a digest finds, a medium that decays, is found at the first reading.
"""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.files import sha256_of, write_json

# A write so shortly after the note could leave the clock of the file system where it was.
SETTLED_SECONDS = 2.0


def has_digest(path: Path, sha256: str) -> bool:
    """Return whether ``path`` is a file with this SHA-256, reading it only if it may have changed.

    The note is kept where the folder can be written; elsewhere every call reads the file.
    """
    if not path.is_file():
        return False
    notes_path = path.with_name("verified.json")
    state = _state(path, sha256)
    if _notes(notes_path).get(path.name) == state:
        return True
    if sha256_of(path) != sha256:
        return False
    # Unchanged while it was read, and long enough at rest for a later write to show.
    if state == _state(path, sha256) and time.time() - path.stat().st_ctime > SETTLED_SECONDS:
        with suppress(OSError):
            write_json(notes_path, _notes(notes_path) | {path.name: state})
    return True


def _state(path: Path, sha256: str) -> list[Any]:
    state = path.stat()
    return [sha256, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _notes(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
