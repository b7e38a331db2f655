"""Documents from the Python standard library, local files or the Hugging Face hub."""

import sys
import sysconfig
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.locations import locate
from harness.errors import UserError

LOCAL_SUFFIXES = (".txt", ".jsonl", ".parquet")


class Document(NamedTuple):
    """A text and a name that is unique and stable within its source."""

    name: str
    text: str


def read_documents(source: Mapping[str, Any], where: str) -> Iterator[Document]:
    """Yield the documents of ``source`` in a stable order.

    Args:
        source: The ``source`` mapping of a text dataset.
        where: File and key of the dataset for messages.

    Raises:
        UserError: If the source is missing or lacks the named column.
    """
    if source["type"] == "python_standard_library":
        return _standard_library()
    if source["type"] == "local":
        return _local(locate(source["path"], f"{where}.source.path"), source["column"], where)
    return _hub(source, where)


def _standard_library() -> Iterator[Document]:
    """Modules that every installation has; distributions differ in tests and compiled parts."""
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names):
        package = root / name
        single = [package.with_suffix(".py")]
        for path in chain(single, sorted(package.rglob("*.py"))):
            relative = path.relative_to(root).as_posix()
            if path.is_file() and "/test" not in relative and "site-packages" not in relative:
                yield Document(relative, path.read_text(encoding="utf-8", errors="replace"))


def _local(path: Path, column: str, where: str) -> Iterator[Document]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [file for file in files if file.suffix in LOCAL_SUFFIXES]
    if not files:
        raise UserError(f"{where}.source.path: no {', '.join(LOCAL_SUFFIXES)} file in '{path}'")
    return chain.from_iterable(_local_file(file, column, where) for file in files)


def _local_file(file: Path, column: str, where: str) -> Iterator[Document]:
    if file.suffix == ".txt":
        yield Document(file.name, file.read_text(encoding="utf-8", errors="replace"))
        return
    from datasets import load_dataset

    kind = {".jsonl": "json", ".parquet": "parquet"}[file.suffix]
    rows = load_dataset(kind, data_files=str(file), split="train", streaming=True)
    yield from _rows(rows, file.name, column, where)


def _hub(source: Mapping[str, Any], where: str) -> Iterator[Document]:
    from datasets import load_dataset

    try:
        rows = load_dataset(source["path"], source["name"], split=source["split"],
                            revision=source["revision"], streaming=True)  # fmt: skip
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{where}.source.path: '{source['path']}' cannot be loaded from the hub ({reason}); "
            "expected network access, or `type: local` with a downloaded copy"
        ) from error
    yield from _rows(rows, source["path"], source["column"], where)


def _rows(rows: Any, name: str, column: str, where: str) -> Iterator[Document]:
    for index, row in enumerate(rows):
        if column not in row:
            raise UserError(
                f"{where}.source.column: found '{column}', expected one of {sorted(row)} ({name})"
            )
        yield Document(f"{name}:{index}", row[column])
