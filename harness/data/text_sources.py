"""Documents from the Python standard library, local files or the Hugging Face hub.

A source is read in a stable order and can say where it is, so that another process goes on there.
"""

import hashlib
import sys
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.locations import hub_copy, locate
from harness.data.text_files import SUFFIXES, check_column, files_below, read_texts, text_of
from harness.errors import UserError, first_line


class Document(NamedTuple):
    """A text and a name that is stable within its source."""

    name: str
    text: str


class Source(ABC):
    """Documents in a stable order, from any position that a source like it has reported."""

    @abstractmethod
    def __iter__(self) -> Iterator[Document]:
        """Yield the documents that follow the current position."""

    @abstractmethod
    def position(self) -> Any:
        """Return where the next document is, as JSON-able data."""

    @abstractmethod
    def go_to(self, position: Any) -> None:
        """Make ``position`` the current one."""

    @abstractmethod
    def origin(self) -> str:
        """Return what changes if the documents may have changed."""

    @abstractmethod
    def states(self) -> dict[str, Any]:
        """Return what ``origin`` depends on by the name of a file or repository, JSON-able."""


class Files(Source):
    """Documents of files on this machine: whole files, or rows of tables."""

    def __init__(
        self, names: Mapping[Path, str], column: str, where: str, repository: str | None = None
    ) -> None:
        """Read files in the order of ``names``.

        Args:
            names: Name of each file.
            column: That holds the text of tables.
            where: File and key of the dataset for messages.
            repository: Of which all files are a copy; its documents are numbered through.
        """
        self.names, self.column, self.where = names, column, where
        self.repository = repository
        self.file = self.row = self.document = 0

    def __iter__(self) -> Iterator[Document]:
        for path, name in list(self.names.items())[self.file :]:
            for text in read_texts(path, self.column, self.row, self.where):
                document = Document(self._name(path, name), text)
                self.row += 1
                self.document += 1
                yield document
            self.file, self.row = self.file + 1, 0

    def position(self) -> list[int]:
        """Return the file, the row in it and the document in all of them."""
        return [self.file, self.row, self.document]

    def go_to(self, position: Sequence[int]) -> None:
        """Make ``position`` the current one."""
        self.file, self.row, self.document = position

    def origin(self) -> str:
        """Return a digest of the names, sizes and times of all files."""
        digest = hashlib.sha256()
        for path, name in self.names.items():
            state = path.stat()
            digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def states(self) -> dict[str, list[int]]:
        """Return size and time of each file by its path."""
        stats = {str(path): path.stat() for path in self.names}
        return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}

    def _name(self, path: Path, name: str) -> str:
        if self.repository is not None:
            return f"{self.repository}:{self.document}"
        return f"{name}:{self.row}" if path.suffix in (".jsonl", ".parquet") else name


class Hub(Source):
    """Rows of a dataset of the Hugging Face hub, streamed."""

    def __init__(self, rows: Any, commit: str, source: Mapping[str, Any], where: str) -> None:
        """Read ``rows``, a ``datasets.IterableDataset`` of ``source`` at a commit."""
        self.rows, self.commit, self.source, self.where = rows, commit, source, where
        self.document = 0

    def __iter__(self) -> Iterator[Document]:
        repository, column = self.source["path"], self.source["column"]
        for row in self.rows:
            name = f"{repository}:{self.document}"
            check_column(column, list(row), repository, self.where)
            self.document += 1
            yield Document(name, text_of(row[column], column, name, self.where))

    def position(self) -> dict[str, Any]:
        """Return the state of the stream and the number of the document."""
        return {"rows": self.rows.state_dict(), "document": self.document}

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Make ``position`` the current one."""
        self.rows.load_state_dict(position["rows"])
        self.document = position["document"]

    def origin(self) -> str:
        """Return the commit of the repository."""
        return self.commit

    def states(self) -> dict[str, str]:
        """Return the commit by the name of the repository."""
        return {self.source["path"]: self.commit}


def open_source(source: Mapping[str, Any], where: str) -> Source:
    """Return the documents of ``source`` from the first one on.

    Args:
        source: The ``source`` mapping of a text dataset.
        where: File and key of the dataset for messages.

    Raises:
        UserError: If the source is missing.
    """
    if source["type"] == "python_standard_library":
        return Files(_standard_library(), "", where)
    if source["type"] == "huggingface":
        return _open_hub(source, where)
    path = locate(source["path"], f"{where}.source.path")
    files = files_below(path)
    if not files:
        raise UserError(f"{where}.source.path: no {', '.join(SUFFIXES)} file in '{path}'")
    return Files({file: file.name for file in files}, source["column"], where)


def _standard_library() -> dict[Path, str]:
    """Modules that every installation has; distributions differ in tests and compiled parts."""
    root = Path(sysconfig.get_path("stdlib"))
    names = {}
    for name in sorted(sys.stdlib_module_names):
        package = root / name
        for path in chain([package.with_suffix(".py")], sorted(package.rglob("*.py"))):
            relative = path.relative_to(root).as_posix()
            if path.is_file() and "/test" not in relative and "site-packages" not in relative:
                names[path] = relative
    return names


def _open_hub(source: Mapping[str, Any], where: str) -> Source:
    """Return the copy below ``HARNESS_DATA`` if there is one, else the hub's stream.

    Both have the same documents under the same names.
    """
    copy = hub_copy(source["path"])
    if copy is not None and source["files"] is not None:
        if next(copy.glob(".cache/huggingface/download/**/*.incomplete"), None) is not None:
            raise UserError(f"{where}.source.path: the copy in '{copy}' is incomplete; expected "
                            f"the end of: {_download(source)}")  # fmt: skip
        files = sorted(copy.glob(source["files"]))
        if files:
            names = {file: file.relative_to(copy).as_posix() for file in files}
            return Files(names, source["column"], where, repository=source["path"])
    return _stream(source, where)


def _stream(source: Mapping[str, Any], where: str) -> Hub:
    from datasets import load_dataset
    from huggingface_hub import HfApi

    path = source["path"]
    try:
        # A preparation that goes on later must not mix two commits.
        commit = str(HfApi().dataset_info(path, revision=source["revision"]).sha)
        rows = load_dataset(path, source["name"], split=source["split"], revision=commit,
                            streaming=True)  # fmt: skip
    except Exception as error:  # whatever the transport below raises
        folder = hub_copy(path)
        raise UserError(
            f"{where}.source.path: '{path}' cannot be reached on the hub "
            f"({first_line(error)}), and "
            + (f"'{folder}' has no copy" if folder else "HARNESS_DATA is not set")
            + f"; expected network access, or a copy: {_download(source)}"
        ) from error
    return Hub(rows, commit, source, where)


def _download(source: Mapping[str, Any]) -> str:
    """Return the command that fetches a copy, as the hub's own client takes it."""
    path, files = source["path"], source["files"] or "*"
    return (f"hf download {path} --repo-type dataset --include '{files}' "
            f"--local-dir \"$HARNESS_DATA/{path}\"")  # fmt: skip
