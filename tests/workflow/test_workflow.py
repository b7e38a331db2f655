"""The whole workflow on a scale of its own, small enough for a test."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness.config.yaml_file import merge, read_yaml

ROOT = Path(__file__).parents[2]
MICRO = {
    "description": "a workflow in a test",
    "device": "cpu",
    "runs_per_job": 5,
    "experiments": {
        "language_optimizers": {
            "optimizers": ["adamw", "root"],
            "datasets": ["standard_library_bytes"],
            "training": {"steps": 4, "batch_size": 2, "sequence_length": 80, "log_interval": 2,
                         "evaluation_interval": 2, "evaluation_batches": 1,
                         "recording_interval": 2},
            "seeds": {"tuning": [9], "reporting": [0]},
            "evaluation": {"documents": 2},
        },
    },
}  # fmt: skip


RULES = {"check", "prepare", "calibrate", "tune", "train", "evaluate", "precision", "collect"}
RULES |= {"tables", "figures", "claims", "report"}


def snakemake(
    folder: Path, *arguments: str, check: bool = True, config: tuple[str, ...] = ()
) -> str:
    command = [sys.executable, "-m", "snakemake", *arguments]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--workflow-profile", str(ROOT / "profiles/default")]
    settings = [f"config={folder / 'config'}", "scale=micro", *config]
    command += ["--config", *settings]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == check, output
    return output


def planned(folder: Path, *targets: str) -> set[str]:
    """Return the rules in the table of jobs that a dry run prints."""
    lines = [line.split() for line in snakemake(folder, *targets, "--dry-run").splitlines()]
    return {words[0] for words in lines if len(words) == 2 and words[0] in RULES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the workflow has run once."""
    folder = tmp_path_factory.mktemp("a workflow")
    shutil.copytree(ROOT / "config", folder / "config")
    (folder / "config" / "scales" / "micro.yaml").write_text(yaml.safe_dump(MICRO))
    snakemake(folder)
    return folder


def test_one_call_goes_from_configuration_to_report(finished):
    results = finished / "results" / "micro"
    assert (results / "report.html").stat().st_size > 100_000
    records = pd.read_parquet(results / "records.parquet")
    assert set(records["optimizer"].dropna()) == {"adamw", "root"}
    metrics = {"lm_eval/heldout_continuation/acc", "orthogonalization/steady_error"}
    assert metrics <= set(records["metric"])
    assert (pd.read_parquet(results / "runs.parquet")["status"] == "completed").all()
    assert len(list((finished / "results" / "runs").iterdir())) == 2 * (5 + 1)


def test_a_second_call_has_nothing_to_do(finished):
    assert "Nothing to be done" in snakemake(finished)


def test_a_folder_is_held_by_one_snakemake_and_free_after_a_kill(finished):
    folder = finished / ".snakemake"
    script = "import sys, time; from pathlib import Path; from harness.files import hold_folder\n"
    script += "lock = hold_folder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    assert "another snakemake is at work here" in snakemake(finished, check=False)
    assert "Nothing to be done" in snakemake(finished, "--dry-run")
    other.kill()
    other.wait()
    assert "Nothing to be done" in snakemake(finished)


def test_deleted_figures_are_redrawn_without_training(finished):
    figures = finished / "results" / "micro" / "figures"
    shutil.rmtree(figures)
    assert planned(finished) == {"figures", "report"}
    assert planned(finished, "figures") == {"figures"}
    snakemake(finished, "figures")
    assert list(figures.glob("*.png"))


def test_an_added_optimizer_adds_its_own_jobs_only(finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    path = folder / "config" / "optimizers.yaml"
    adan = {"class": "pytorch_optimizer.Adan", "arguments": {"weight_decay": 0.02},
            "tune": {"lr": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]}}  # fmt: skip
    path.write_text(path.read_text() + "\n" + yaml.safe_dump({"adan": adan}))
    scale = folder / "config" / "scales" / "micro.yaml"
    everyone = {"experiments": {"language_optimizers": {"optimizers": ["adamw", "root", "adan"]}}}
    scale.write_text(yaml.safe_dump(merge(read_yaml(scale), everyone)))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("results/micro/jobs/t*/*.json")}
    output = snakemake(folder)
    assert re.search(r"\btune +1\b", output)
    table = next((folder / "results/micro/tables").glob("sweep.*.csv"))
    assert list(pd.read_csv(table)["optimizer"]) == ["adamw", "root", "adan"]
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())


def test_records_of_somebody_else_are_drawn_where_they_are(finished, tmp_path):
    records = tmp_path / "her records"
    shutil.copytree(finished / "results" / "micro", records)
    for name in ("tables", "figures"):
        shutil.rmtree(records / name)
    for path in (*records.glob("report.*"), *records.glob("*.csv")):
        path.unlink()
    snakemake(finished, config=(f"records={records}",))
    assert (records / "report.html").is_file()
    assert list((records / "figures").glob("*.png"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("scal=check", "--config: unknown key 'scal' (did you mean 'scale'?)"),
        ("scale=5", "scale: found '5' (valid: "),
        ("scale=", "--config scale: found nothing, expected a value"),
        ("config=no/such", "config: found 'no/such', which has no scales"),
        ("records=no/such", "--config records: found 'no/such', which has no records.parquet"),
    ],
)
def test_a_wrong_setting_is_one_line(finished, setting, message):
    output = snakemake(finished, "--dry-run", check=False, config=(setting,))
    assert sum(message in line for line in output.splitlines()) == 1
    assert "Traceback" not in output


def test_a_mistake_ends_before_any_job_with_one_line(finished, tmp_path):
    folder = tmp_path / "mistaken"
    shutil.copytree(finished / "config", folder / "config")
    path = folder / "config" / "optimizers.yaml"
    path.write_text(path.read_text().replace("weight_decay: 0.1,", "weight_decy: 0.1,", 1))
    output = snakemake(folder, check=False)
    lines = [line for line in output.splitlines() if "weight_decy" in line]
    assert len(lines) == 1
    assert "'weight_decay'" in output
    assert not (folder / "results").exists()
    assert "Traceback" not in output
