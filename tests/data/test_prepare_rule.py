"""Another scale does not prepare data again, and a failed preparation loses nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness.config.catalog import load_catalog
from harness.plan.expand import expand

ROOT = Path(__file__).parents[2]


def scale(optimizers: list[str]) -> str:
    experiment = {
        "optimizers": optimizers,
        "datasets": ["mine"],
        "training": {"steps": 2, "batch_size": 2, "sequence_length": 80},
        "seeds": {"tuning": [9], "reporting": [0]},
        "evaluation": {"documents": 2},
    }
    return yaml.safe_dump({"description": "a workflow in a test", "device": "cpu",
                           "experiments": {"language_optimizers": experiment}})  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    for name, optimizers in (("one", ["adamw"]), ("two", ["adamw", "muon"])):
        (tmp_path / "config" / "scales" / f"{name}.yaml").write_text(scale(optimizers))
    lines = [json.dumps({"text": f"{index} spam " * 40}) for index in range(200)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    source = {"type": "local", "path": str(tmp_path / "mine.jsonl")}
    entry = {"mine": {"kind": "text", "source": source, "tokenizer": {"type": "bytes"}}}
    with (tmp_path / "config" / "datasets.yaml").open("a") as file:
        file.write("\n" + yaml.safe_dump(entry))
    return tmp_path


def snakemake(folder: Path, scale: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "snakemake", *arguments]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--workflow-profile", str(ROOT / "profiles/default")]
    command += ["--config", f"config={folder / 'config'}", f"scale={scale}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    return done.stdout + done.stderr


def prepared(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.iterdir() if path.suffix in (".json", ".jsonl", ".bin"))
    return {path.name: path.read_bytes() for path in files}


def test_another_scale_and_a_failure_leave_prepared_data_alone(folder):
    jobs = expand(load_catalog(folder / "config", "one")).values()
    [name] = [job.name for job in jobs if job.stage == "prepare"]
    target, data = f"results/data/{name}/manifest.json", folder / "results" / "data" / name
    assert "prepare" in snakemake(folder, "one", target)
    before, changed = prepared(data), (data / "manifest.json").stat().st_mtime_ns
    assert len(before) == 7
    with (folder / "mine.jsonl").open("a") as file:
        file.write("{oops\n")
    output = snakemake(folder, "two", target)
    assert "check" in output
    assert "prepare " not in output
    assert (data / "manifest.json").stat().st_mtime_ns == changed
    output = snakemake(folder, "two", target, "--forcerun", "prepare")
    [line] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert f"mine.source: '{folder}/mine.jsonl' changed since results/data/{name} was" in line
    assert prepared(data) == before
