"""The job that runs lm-eval on the checkpoints of one training job."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.data.text import read_heldout, read_manifest
from harness.data.tokenizers import END_OF_TEXT, load_tokenizer
from harness.errors import UserError
from harness.evaluation.heldout_tasks import write_heldout_tasks
from harness.evaluation.language_model import HarnessLM
from harness.evaluation.run import evaluate_language_model
from harness.files import write_json
from harness.jobs.context import Context
from harness.models import build_model
from harness.plan.expand import Job
from harness.plan.identity import digest
from harness.records.run_folder import RunFolder, require_summary
from harness.training.devices import leased_device

# The held-out questions are part of the data, not of a run.
TASK_SEED = 0


def evaluate(job: Job, context: Context) -> dict[str, Any]:
    """Return the scores of every completed run of the training job that ``job`` needs."""
    [item] = job.work
    [trained] = [name for name in job.needs if context.job(name).stage == "train"]
    data = context.dataset_folder(job)
    where = f"{context.catalog.folder}/scales/{context.catalog.scale_name}.yaml: device"
    records = []
    with leased_device(context.catalog.scale.device, where) as device:
        torch.set_num_threads(context.catalog.scale.threads)
        for run in context.result(trained)["runs"]:
            folder = context.run_folder(run["run_id"])
            summary = require_summary(folder)
            if summary["status"] != "completed":
                continue
            scores = _scores(folder, summary, item.spec, data, device)
            common = {"run_id": run["run_id"], **run["factors"]}
            common["step"] = summary["spec"]["training"]["steps"]
            records.extend(common | score for score in scores)
    return {"records": records}
