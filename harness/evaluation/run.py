"""Running lm-eval and turning its answer into records."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError, closest
from harness.evaluation.heldout_tasks import HELDOUT_TASKS
from harness.evaluation.language_model import HarnessLM

UNITS = {"bits_per_byte": "bit/B", "chrf": "%"}


def evaluate_language_model(
    model: HarnessLM, tasks: Sequence[str], embedded: Path, documents: int | None, cache: Path
) -> list[dict[str, Any]]:
    """Score ``model`` zero-shot on ``tasks`` and return one record per metric.

    Args:
        model: The adapter.
        tasks: Embedded tasks, or any tasks that lm-eval knows.
        embedded: Folder of the embedded tasks' files.
        documents: Documents per task; None for all.
        cache: Where `datasets` keeps what it builds.

    Returns:
        Records ``lm_eval/<task>/<metric>`` and ``..._stderr``.

    Raises:
        UserError: If lm-eval does not know a task.
    """
    # Read by `datasets` when it is first imported, which lm-eval does.
    os.environ["HF_DATASETS_CACHE"] = str(cache.resolve())
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    # The index of all of lm-eval's tasks takes seconds; the embedded ones do not need it.
    standard = any(task not in HELDOUT_TASKS for task in tasks)
    manager = TaskManager(include_path=str(embedded), include_defaults=standard)
    for task in tasks:
        if task not in manager.all_tasks:
            raise UserError(f"evaluation.tasks: found '{task}'{closest(task, manager.all_tasks)}")
    answer = simple_evaluate(
        model=model,
        tasks=list(tasks),
        num_fewshot=0,
        limit=documents,
        task_manager=manager,
        bootstrap_iters=1000,
        log_samples=False,
        random_seed=0,
        numpy_random_seed=0,
        torch_random_seed=0,
    )
    records = [
        record
        for task in tasks
        for record in _records(task, answer["results"][task], _labels(answer, task, model))
    ]
    return records + _average(records)


def _average(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the plain mean of `acc` over the tasks that have it, as published tables print it."""
    scores = [record for record in records if record["metric"].endswith("/acc")]
    if not scores:
        return []
    mean = sum(record["value"] for record in scores) / len(scores)
    labels = {"samples": sum(record["labels"]["samples"] for record in scores),
              "tasks": len(scores)}  # fmt: skip
    return [{"metric": "lm_eval/average/acc", "value": mean, "unit": "1", "labels": labels}]


def _labels(answer: dict[str, Any], task: str, model: HarnessLM) -> dict[str, Any]:
    return {
        "samples": answer["n-samples"][task]["effective"],
        "task_version": answer["versions"][task],
        "batch_size": model.batch_size,
    }


def _records(task: str, scores: dict[str, Any], labels: dict[str, Any]) -> list[dict[str, Any]]:
    records = []
    for key, value in scores.items():
        name, _, filter_name = key.partition(",")
        if filter_name == "none" and isinstance(value, float):
            unit = UNITS.get(name.removesuffix("_stderr"), "1")
            records.append({"metric": f"lm_eval/{task}/{name}", "value": value, "unit": unit,
                            "labels": labels})  # fmt: skip
    return records
