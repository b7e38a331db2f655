"""The job that runs lm-eval on the checkpoints of one training job, and lets them speculate.

Shape suffixes: P prompts, T positions.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.data.locations import locate
from harness.data.text import TokenStream, read_heldout
from harness.data.tokenizers import load_tokenizer
from harness.evaluation.heldout_tasks import HELDOUT_TASKS, write_heldout_tasks
from harness.files import read_json, write_json
from harness.jobs.context import Context
from harness.jobs.trained_model import load_trained
from harness.measurement.speculation import measure_speculation
from harness.models.decoder import Decoder
from harness.plan.identity import digest
from harness.plan.job import Job
from harness.processor import set_up_processor
from harness.records.run_folder import RunFolder, require_summary
from harness.training.devices import leased_device

# The held-out questions are part of the data, not of a run.
TASK_SEED = 0


def evaluate(job: Job, context: Context) -> dict[str, Any]:
    """Return the scores of every completed run of the training job that ``job`` needs."""
    [item] = job.work
    [trained] = [name for name in job.needs if context.job(name).stage == "train"]
    data = context.dataset_folder(job)
    records: list[dict[str, Any]] = []
    with leased_device(context.catalog.scale.device, context.device_key) as device:
        set_up_processor(context.catalog.scale.threads)
        for run in context.reported_runs(trained):
            folder = context.run_folder(run["run_id"])
            summary = require_summary(folder)
            if summary["status"] != "completed":
                continue
            scores = _scores(folder, summary, item.spec, data, device)
            common = {"run_id": run["run_id"], **run["factors"]}
            common["step"] = summary["spec"]["training"]["steps"]
            records.extend(common | score for score in scores)
    return {"records": records}


def _scores(
    folder: RunFolder, summary: dict[str, Any], spec: dict[str, Any], data: Path, device: str
) -> list[dict[str, Any]]:
    """Return the scores of one run, from its folder if they were computed before."""
    path = folder.path / f"evaluation-{digest(spec)}.json"
    if path.is_file():
        return read_json(path)
    decoder = load_trained(folder, summary).to(device).eval()
    scores: list[dict[str, Any]] = []
    if spec["tasks"]:
        length = summary["spec"]["training"]["sequence_length"]
        scores += _task_scores(decoder, spec, data, device, length)
    if spec["speculation"] is not None and decoder.prediction is not None:
        scores += _speculation(decoder, spec["speculation"], data)
    write_json(path, scores)
    return scores


def _task_scores(
    decoder: Decoder, spec: dict[str, Any], data: Path, device: str, max_length: int
) -> list[dict[str, Any]]:
    # lm-eval takes seconds to import, and speculation alone does not need it.
    from harness.evaluation.language_model import HarnessLM
    from harness.evaluation.run import evaluate_language_model, load_tasks

    folder = data / "tasks" / digest(spec)
    if set(spec["tasks"]) & set(HELDOUT_TASKS):
        write_heldout_tasks(read_heldout(data), folder, TASK_SEED, spec["documents"] or 1000)
    mirror = None if spec["mirror"] is None else locate(spec["mirror"], "evaluation.mirror")
    tasks = load_tasks(tuple(spec["tasks"]), folder, mirror, data / "cache")
    model = HarnessLM(
        decoder, load_tokenizer(data), device, max_length=max_length, batch_size=spec["batch_size"]
    )
    return evaluate_language_model(model, tasks, spec["documents"])


def _speculation(model: Decoder, spec: dict[str, Any], data: Path) -> list[dict[str, Any]]:
    """Return how decoding speculates after prompts spread evenly over the held-out text."""
    stream, length = TokenStream(data, "test"), spec["prompt_tokens"]
    starts = np.linspace(0, len(stream) - length, spec["prompts"]).astype(int)
    prompts_PT = torch.from_numpy(np.stack([stream.read(int(s), length) for s in starts]))
    return measure_speculation(model, prompts_PT, spec["new_tokens"], spec["rounds"])
