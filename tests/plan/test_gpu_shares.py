"""GPUs are counted in shares; only jobs that train may take less than a whole one."""

import shutil
from pathlib import Path

import pytest
import yaml

from harness.plan.workflow import WorkflowPlan

CONFIG = Path(__file__).parents[2] / "config"
SCALE = {
    "description": "three jobs on a GPU",
    "device": "cuda",
    "experiments": {
        "language_optimizers": {
            "optimizers": ["adamw"],
            "datasets": ["standard_library_bytes"],
            "evaluation": {"tasks": ["heldout_continuation"], "documents": 2},
        },
        "optimizer_step": {"optimizers": ["adamw"], "models": ["decoder_tiny"]},
        "model_costs": None,
    },
}


@pytest.mark.parametrize("sharing", [1, 3])
def test_only_training_jobs_share(tmp_path, sharing):
    config = Path(shutil.copytree(CONFIG, tmp_path / "config"))
    scale = SCALE | {"jobs_per_gpu": sharing}
    (config / "scales" / "micro.yaml").write_text(yaml.safe_dump(scale))
    plan = WorkflowPlan.load(config, "micro")
    shares = {job.stage: plan.gpus(name) for name, job in plan.jobs.items()}
    alone = {"check": sharing, "evaluate": sharing, "measure": sharing}
    assert shares == alone | {"tune": 1, "train": 1, "prepare": 0, "compute": 0}
