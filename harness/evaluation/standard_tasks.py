"""Tasks as lm-eval defines them, on the data of the hub or on local copies of these.

A mirror is a folder with one file for each task, `<task>.parquet` or `<task>.jsonl`, that holds
the split which lm-eval evaluates, in the columns of the hub. Everything but the place of the data
is read from the definition that is installed: prompts, what is done to documents, and metrics.
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError, closest
from harness.files import write_atomically

_TASK = re.compile(r"^task:[ \t]*[\"']?([^\s\"'#\[]+)", re.MULTILINE)
# Groups, and tasks whose code says where their data come from.
_OTHER_KIND = re.compile(r"^(group|class|custom_dataset):", re.MULTILINE)
FORMATS = {".parquet": "parquet", ".jsonl": "json"}


@cache
def definitions() -> Mapping[str, Path]:
    """Return the files that define lm-eval's single tasks by name, without parsing them all.

    lm-eval's own index, which also has groups and tags, takes five times as long.
    """
    package = find_spec("lm_eval")
    assert package is not None
    assert package.origin is not None
    files = (Path(package.origin).parent / "tasks").rglob("*.yaml")
    found: dict[str, Path] = {}
    # Of two files with one task lm-eval takes the first in this order.
    for file in sorted(files, key=Path.as_posix):
        text = file.read_text(errors="replace")
        if not _OTHER_KIND.search(text):
            for name in _TASK.findall(text):
                found.setdefault(name, file)
    return found


def mirrored_files(tasks: Sequence[str], mirror: Path, where: str) -> dict[str, Path]:
    """Return the file of each of ``tasks`` in ``mirror``.

    Args:
        tasks: Names of lm-eval.
        mirror: The folder.
        where: File and key of the mirror for messages.

    Raises:
        UserError: If a task is unknown or a group, or has no file or two.
    """
    files: dict[str, list[Path]] = {}
    for task in tasks:
        if task not in definitions():
            raise UserError(f"{where}: found task '{task}', expected single tasks that lm-eval "
                            f"defines{closest(task, definitions())}")  # fmt: skip
        named = [mirror / f"{task}{suffix}" for suffix in FORMATS]
        files[task] = [file for file in named if file.is_file()]
        if len(files[task]) > 1:
            raise UserError(f"{where}: found both {files[task][0]} and {files[task][1].name}, "
                            "expected one of them")  # fmt: skip
    missing = [task for task in tasks if not files[task]]
    if missing:
        names = ", ".join(f"{task}.parquet" for task in missing)
        raise UserError(f"{where}: {mirror} lacks {names} (or .jsonl); where there is a network, "
                        f"'harness mirror --tasks {','.join(missing)} --output {mirror}' fetches "
                        "what is missing")  # fmt: skip
    return {task: found[0] for task, found in files.items()}


def write_definitions(tasks: Sequence[str], folder: Path, files: Mapping[str, Path]) -> None:
    """Write a definition of each task that includes the installed one.

    Args:
        tasks: Single tasks of lm-eval.
        folder: Where the definitions go.
        files: Local data by task; other tasks read the hub.
    """
    for task in tasks:
        definition: dict[str, Any] = {"include": str(definitions()[task]), "task": task}
        if task in files:
            definition |= _on_file(_evaluated_split(task), files[task])
        write_atomically(folder / f"{task}.yaml", yaml.safe_dump(definition).encode())


def _on_file(split: str, file: Path) -> dict[str, Any]:
    """Return what a definition says of data that have one split in one file."""
    return {
        "dataset_path": FORMATS[file.suffix],
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file.resolve())}},
        "training_split": None,
        "validation_split": None,
        "fewshot_split": None,
        # Evaluated if there is one, whatever the hub calls it.
        "test_split": split,
    }


def _installed(task: str) -> dict[str, Any]:
    """Return the installed definition of a task, included files merged, functions by name."""
    from lm_eval.tasks import TaskManager

    folder = definitions()[task].parent
    entry = TaskManager(include_path=str(folder), include_defaults=False).task_index[task]
    assert entry.cfg is not None
    return entry.cfg


def _evaluated_split(task: str) -> str:
    definition = _installed(task)
    split = definition.get("test_split") or definition.get("validation_split")
    assert split is not None, "lm-eval refuses tasks without one"
    return split


def mirror_tasks(tasks: Sequence[str], output: Path) -> list[str]:
    """Copy what lm-eval evaluates of each task from the hub into a mirror.

    Args:
        tasks: Single tasks of lm-eval.
        output: The folder; files that it has are kept.

    Returns:
        A line for each task.

    Raises:
        UserError: If a task is unknown or a group, or the hub cannot be read.
    """
    for task in tasks:
        if task not in definitions():
            raise UserError(f"--tasks: found '{task}', expected single tasks that lm-eval "
                            f"defines{closest(task, definitions())}")  # fmt: skip
    lines = []
    output.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        file = output / f"{task}.parquet"
        lines.append(f"{file}: " + ("kept" if file.is_file() else f"{_copy(task, file)} rows"))
    return lines


def _copy(task: str, file: Path) -> int:
    from datasets import load_dataset

    definition = _installed(task)
    path, options = definition["dataset_path"], dict(definition.get("dataset_kwargs") or {})
    # Nothing of the hub runs code any more; `datasets` refuses the option.
    options.pop("trust_remote_code", None)
    try:
        data = load_dataset(path, definition.get("dataset_name"), **options)
    except (OSError, ValueError) as error:
        raise UserError(f"--tasks: {task}: '{path}' cannot be loaded from the hub "
                        f"({str(error).splitlines()[0]})") from error  # fmt: skip
    partial = file.with_name(f"{file.name}.partial{os.getpid()}")
    rows = data[_evaluated_split(task)]
    rows.to_parquet(partial)
    partial.replace(file)
    return len(rows)
