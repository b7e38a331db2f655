"""Records made up for these tests: three optimizers whose order is known by construction."""

import json
from pathlib import Path

import pandas as pd
import pytest

from harness.records.store import RECORD_COLUMNS, RUN_COLUMNS, write_table

# Final loss: muon clearly below adamw; root and muon apart by less than their spread.
LEVELS = {"adamw": 4.0, "muon": 3.5, "root": 3.5}
NOISE = {0: 0.01, 1: -0.02, 2: 0.01}
RATES = (0.001, 0.003, 0.01)


def run_rows(optimizer: str, role: str, rate: float, seed: int, loss: float):
    run_id = f"{optimizer}.{role}.{rate}.{seed}"
    common = {"experiment": "language_optimizers", "run_id": run_id, "role": role,
              "model": "decoder_tiny", "dataset": "text", "optimizer": optimizer,
              "learning_rate": rate, "seed": seed}  # fmt: skip
    metrics = [(step, name, loss + 1 - step / 100, "nats")
               for step in (50, 100) for name in ("train/loss", "validation/loss")]  # fmt: skip
    metrics += [(100, "test/loss", loss, "nats"), (None, "time/step", 0.01, "s")]
    if role == "reporting":
        metrics.append((100, "lm_eval/quiz/acc", 5 - loss, "1"))
    labels = json.dumps({"samples": 10})
    return common, [
        common | {"labels": labels, "step": s, "metric": m, "value": v, "unit": u}
        for s, m, v, u in metrics
    ]


@pytest.fixture
def results_folder(tmp_path) -> Path:
    runs, records = [], []
    for optimizer, level in LEVELS.items():
        trials = [("tuning", rate, 100, level + abs(index - 1) * 0.5)
                  for index, rate in enumerate(RATES)]  # fmt: skip
        wobble = {"adamw": 1, "muon": 0.5, "root": -1}[optimizer]
        reports = [("reporting", 0.003, seed, level + wobble * noise)
                   for seed, noise in NOISE.items()]  # fmt: skip
        for role, rate, seed, loss in trials + reports:
            common, rows = run_rows(optimizer, role, rate, seed, loss)
            diverged = optimizer == "adamw" and rate == 0.01
            status = {"status": "diverged", "reason": "loss inf at step 10"} if diverged else {
                "status": "completed"}  # fmt: skip
            records += [row for row in rows if not diverged]
            runs.append(common | status | {"spec": "{}", "environment": '{"commit": "abc"}'})
    for round_ in range(4):
        for index, optimizer in enumerate(LEVELS):
            records.append({"experiment": "optimizer_step", "role": "measure", "run_id": "m",
                            "model": "decoder_small", "optimizer": optimizer, "unit": "s",
                            "labels": json.dumps({"round": round_}), "value": (1 + index) * 0.01,
                            "metric": "time/optimizer_step"})  # fmt: skip
    for metric, value in {"a": 3.4, "b": -4.7, "c": 2.0, "error": 0.1, "error_muon": 0.2}.items():
        labels = json.dumps({"rows": 64, "columns": 128, "source": "calibrated",
                             "data": "gaussian", "objective": "mean_square"})  # fmt: skip
        records.append({"experiment": "calibration", "role": "compute", "run_id": "c",
                        "labels": labels, "metric": f"calibration/{metric}", "value": value,
                        "optimizer": "root", "unit": "1"})  # fmt: skip
    sweep = {"title": "Optimizers", "question": "Which?", "kind": "train", "baseline": "adamw",
             "optimizers": list(LEVELS), "runs": 18, "command": "snakemake", "cost": "seconds",
             "steps": 100, "seeds": {"tuning": [100], "reporting": [0, 1, 2]},
             "compare": "optimizers", "models": {"decoder_tiny": "decoder_tiny"},
             "trials": 3}  # fmt: skip
    measure = {"title": "Step", "question": "How long?", "kind": "measure", "baseline": "adamw",
               "optimizers": list(LEVELS), "runs": 1, "command": "snakemake",
               "cost": "seconds"}  # fmt: skip
    plan = {"scale": "smoke", "description": "made up", "device": "cpu", "elsewhere": {},
            "experiments": {"language_optimizers": sweep, "optimizer_step": measure}}  # fmt: skip
    folder = tmp_path / "records"
    write_table(pd.DataFrame(records), RECORD_COLUMNS, folder / "records.parquet")
    write_table(pd.DataFrame(runs), RUN_COLUMNS, folder / "runs.parquet")
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder
