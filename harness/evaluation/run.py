"""Running lm-eval and turning its answer into records."""

import hashlib
import json
import logging
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.errors import UserError, closest
from harness.evaluation.heldout_tasks import HELDOUT_TASKS
from harness.evaluation.language_model import HarnessLM
from harness.evaluation.standard_tasks import definitions, mirrored_files, write_definitions
from harness.files import sha256_of

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

UNITS = {"bits_per_byte": "bit/B", "chrf": "%"}


@dataclass(frozen=True, kw_only=True)
class LoadedTask:
    """A task, or what else lm-eval has under one name, ready for any number of models.

    Attributes:
        name: As the configuration has it.
        source: Where its documents are from: `embedded`, `hub` or the digest of a local file.
        tasks: Single tasks of lm-eval by name.
        groups: Groups of them by name; without one, no scores are taken together.
    """

    name: str
    source: str
    tasks: dict[str, Any]
    groups: dict[str, Any]


# The runs of a job are asked the same.
@lru_cache(maxsize=1)
def load_tasks(
    names: tuple[str, ...], folder: Path, mirror: Path | None, cache: Path
) -> list[LoadedTask]:
    """Return tasks with their documents.

    Args:
        names: Embedded tasks, or any tasks, groups or tags that lm-eval knows.
        folder: Holds the definitions of embedded tasks; gets those of others.
        mirror: Local copies of what lm-eval would read from the hub; None: the hub.
        cache: Where `datasets` keeps what it builds.

    Raises:
        UserError: If lm-eval does not know a task, or its data are missing or not what they
            should be.
    """
    # Read by `datasets` when it is first imported, which lm-eval does.
    os.environ["HF_DATASETS_CACHE"] = str(cache.resolve())
    import datasets
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    _compile_templates_once()
    others = [name for name in names if name not in HELDOUT_TASKS]
    files = {} if mirror is None else mirrored_files(others, mirror, "evaluation.mirror")
    single = [name for name in others if name in definitions()] if others else []
    write_definitions(single, folder, files)
    # The index of all of lm-eval's tasks takes ten seconds; only groups and tags need it.
    manager = TaskManager(include_path=str(folder), include_defaults=single != others)
    loaded = []
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(f"evaluation.tasks: found '{name}'{closest(name, manager.all_tasks)}")
        source = "embedded" if name in HELDOUT_TASKS else "hub"
        if name in files:
            source = f"sha256:{sha256_of(files[name])}"
        found = _load(manager, name, files.get(name))
        loaded.append(LoadedTask(name=name, source=source, tasks=found["tasks"],
                                 groups=found.get("groups", {})))  # fmt: skip
    return loaded


def _compile_templates_once() -> None:
    """Keep jinja's compiled templates: lm-eval compiles a prompt's anew for every document."""
    from lm_eval.utils import env

    if not hasattr(env.from_string, "cache_info"):
        env.from_string = lru_cache(maxsize=None)(env.from_string)


def _load(manager: "TaskManager", name: str, file: Path | None) -> Any:
    _seed()
    try:
        return manager.load([name])
    except Exception as error:  # definitions are templates and code, and raise as these do
        lines = str(error).splitlines() or ["no message"]
        reason = f"{type(error).__name__}: {lines[0]}"
        if file is None:
            raise UserError(
                f"evaluation.tasks: '{name}' cannot be loaded ({reason}); expected access to the "
                "hub, or evaluation.mirror with local copies"
            ) from error
        raise UserError(
            f"{file}: cannot be read as task '{name}' of lm-eval ({reason}); expected the columns "
            "that its dataset has on the hub"
        ) from error


def _seed() -> None:
    """Seed what tasks may shuffle answers with."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def evaluate_language_model(
    model: HarnessLM, tasks: Iterable[LoadedTask], documents: int | None
) -> list[dict[str, Any]]:
    """Score ``model`` zero-shot on ``tasks`` and return one record per metric.

    Each task is evaluated alone, so that its scores do not depend on the others.

    Args:
        model: The adapter.
        tasks: Of ``load_tasks``.
        documents: Documents per task; None for all.

    Returns:
        Records ``lm_eval/<task>/<metric>`` and ``..._stderr``. Their labels say where the
        documents are from, and `requests` is a digest of all that was asked and expected.
    """
    records = [record for task in tasks for record in _evaluate(model, task, documents)]
    return records + _average(records)


def _evaluate(model: HarnessLM, task: LoadedTask, documents: int | None) -> list[dict[str, Any]]:
    from lm_eval import evaluate

    _seed()
    for single in task.tasks.values():
        single.set_config("num_fewshot", 0)
    answer = evaluate(
        lm=model,
        task_dict={"tasks": task.tasks, "groups": task.groups},
        limit=documents,
        bootstrap_iters=1000,
        log_samples=False,
    )
    grouped = {task.name: list(task.tasks)} if task.name in task.groups else None
    records = []
    for name, members in (grouped or {name: [name] for name in task.tasks}).items():
        labels = {
            "samples": sum(answer["n-samples"][member]["effective"] for member in members),
            "task_version": answer["versions"][name],
            "batch_size": model.batch_size,
            "source": task.source,
            "requests": requests_digest([task.tasks[member] for member in members]),
        }
        records += _records(name, answer["results"][name], labels)
    return records


def requests_digest(tasks: Iterable[Any]) -> str:
    """Return 12 hexadecimal digits that stand for what ``tasks`` have asked and expect.

    Scores with one digest answer the same questions, whatever version of lm-eval and copy of the
    data they are from: columns that nobody reads do not count.
    """
    asked = hashlib.sha256()
    for task in tasks:
        for instance in task.instances:
            content = [task.task_name, instance.args, str(task.doc_to_target(instance.doc))]
            asked.update(json.dumps(content).encode())
    return asked.hexdigest()[:12]


def _records(task: str, scores: dict[str, Any], labels: dict[str, Any]) -> list[dict[str, Any]]:
    records = []
    for key, value in scores.items():
        name, _, filter_name = key.partition(",")
        if filter_name and isinstance(value, float):
            unit = UNITS.get(name.removesuffix("_stderr"), "1")
            # Other filters read an answer in other ways; their scores are other metrics.
            metric = name if filter_name == "none" else key
            records.append({"metric": f"lm_eval/{task}/{metric}", "value": value, "unit": unit,
                            "labels": labels})  # fmt: skip
    return records


def _average(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the plain mean of `acc` over the tasks that have it, as published tables print it."""
    scores = [record for record in records if record["metric"].endswith("/acc")]
    if not scores:
        return []
    mean = sum(record["value"] for record in scores) / len(scores)
    labels = {"samples": sum(record["labels"]["samples"] for record in scores),
              "tasks": len(scores)}  # fmt: skip
    return [{"metric": "lm_eval/average/acc", "value": mean, "unit": "1", "labels": labels}]
