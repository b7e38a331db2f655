"""Rows of text files on this machine, read as a stream from any row: .txt, .jsonl, .parquet."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from harness.errors import UserError, closest, first_line

SUFFIXES = (".txt", ".jsonl", ".parquet")
# Rows of a Parquet file that are decoded at a time.
PARQUET_ROWS = 256


def files_below(path: Path) -> list[Path]:
    """Return the text files of a folder in the order of their paths, or ``path`` if it is one."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    # Hidden folders hold what download tools keep for themselves.
    return [
        file
        for file in files
        if file.suffix in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]


def read_texts(file: Path, column: str, start: int, where: str) -> Iterator[str]:
    """Yield the texts of ``file`` from row ``start``; a file that is no table is one row.

    Args:
        file: Of one of ``SUFFIXES``; any other is read as plain text.
        column: That holds the text of a table.
        start: Rows to leave out.
        where: File and key of the dataset for messages.

    Raises:
        UserError: If the file cannot be read or a row is not what it should be.
    """
    try:
        if file.suffix == ".jsonl":
            yield from _jsonl(file, column, start, where)
        elif file.suffix == ".parquet":
            yield from _parquet(file, column, start, where)
        else:
            yield from _plain(file, start)
    except OSError as error:
        raise UserError(
            f"{where}.source.path: '{file}' cannot be read ({first_line(error)})"
        ) from None


def text_of(value: Any, column: str, row: str, where: str) -> str:
    """Return ``value`` if it is a text.

    Raises:
        UserError: If it is not.
    """
    if not isinstance(value, str):
        raise UserError(
            f"{where}.source.column: '{column}' of {row} holds {value!r:.40}, expected text"
        )
    return value


def check_column(column: str, columns: list[str], name: str, where: str) -> None:
    """Refuse a ``column`` that the table ``name`` does not have.

    Raises:
        UserError: If it is not one of ``columns``.
    """
    if column not in columns:
        raise UserError(
            f"{where}.source.column: {name} has no column '{column}'{closest(column, columns)}"
        )


def _plain(file: Path, start: int) -> Iterator[str]:
    if start == 0:
        yield file.read_text(encoding="utf-8", errors="replace")


def _jsonl(file: Path, column: str, start: int, where: str) -> Iterator[str]:
    try:
        yield from _json_lines(file, column, start, where)
    except UnicodeDecodeError:
        number, reason = _undecodable_line(file)
        raise UserError(f"{where}.source.path: line {number} of {file} is not UTF-8 ({reason}); "
                        "expected JSON Lines in UTF-8") from None  # fmt: skip


def _undecodable_line(file: Path) -> tuple[int, str]:
    """Return number and mistake of the line; the decoder, which reads ahead, does not know it."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, error.reason
    raise AssertionError(f"{file} changed while it was read")


def _json_lines(file: Path, column: str, start: int, where: str) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        for number, line in islice(numbered, start, None):
            place = f"line {number} of {file}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}.source.path: {place} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"{where}.source.path: {place} is not a JSON object")
            check_column(column, list(row), place, where)
            yield text_of(row[column], column, place, where)


def _parquet(file: Path, column: str, start: int, where: str) -> Iterator[str]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{where}.source.path: '{file}' is not a Parquet file ({first_line(error)})"
                        ) from None  # fmt: skip
    with table:
        check_column(column, table.schema_arrow.names, str(file), where)
        row = 0
        for group in range(table.num_row_groups):
            size = table.metadata.row_group(group).num_rows
            if row + size <= start:
                row += size
                continue
            batches = table.iter_batches(PARQUET_ROWS, row_groups=[group], columns=[column])
            while True:
                try:
                    batch = next(batches, None)
                    if batch is None:
                        break
                    values = batch.column(0).slice(max(0, start - row)).to_pylist()
                except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
                    raise UserError(f"{where}.source.path: '{file}' is damaged at row {row} or "
                                    f"after it ({first_line(error)})") from None  # fmt: skip
                row += len(batch)
                for back, value in zip(range(len(values), 0, -1), values, strict=True):
                    yield text_of(value, column, f"row {row - back} of {file}", where)
