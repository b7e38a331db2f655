"""The workflow for a limited time: stops cleanly, says what is left, and goes on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from harness.errors import Interrupted, UserError
from harness.run_for import parse_duration, run_in_box

ROOT = Path(__file__).parents[2]
# Two experiments of a moment, and runs that no test waits for.
SCALE = {
    "description": "a workflow in a test",
    "device": "cpu",
    "runs_per_job": 8,
    "checkpoint_seconds": 0.2,
    "experiments": {
        "overlap": None,
        "decode_limit": None,
        "image_optimizers": {
            "optimizers": ["adamw"],
            "training": {"steps": 1000000, "evaluation_interval": 1000000},
        },
    },
}
# Stands for snakemake: its job takes a moment to stop, and it waits for that.
PARENT = """
import subprocess, sys
job = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]])
try:
    sys.exit(job.wait())
except KeyboardInterrupt:
    job.wait()
    sys.exit(1)
"""
JOB = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
if sys.argv[2] == "ignores":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    (folder / "started").write_text(str(os.getpid()))
    time.sleep(30)
except KeyboardInterrupt:
    time.sleep(0.3)
    (folder / "checkpoint").touch()
"""


def parent(folder, manners):
    return [sys.executable, "-c", PARENT, JOB, str(folder), manners]


def wait_for(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def alive(pid):
    # A process whose parent has ended stays as a zombie until it is reaped.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("9m", 540), ("1.5h", 5400), ("0.5s", 0.5)]
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["9", "9 m", "m", "0m", "-1m", "9min", "1h30m"])
def test_other_durations_are_refused(text):
    with pytest.raises(UserError, match=re.escape(f"--for: found '{text}', expected a time")):
        parse_duration(text)


def test_what_ends_in_time_keeps_its_status():
    assert run_in_box([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3


def test_when_the_time_is_up_jobs_have_stopped_and_saved(tmp_path):
    assert run_in_box(parent(tmp_path, "heeds"), 3) is None
    assert (tmp_path / "checkpoint").exists()
    assert not alive((tmp_path / "started").read_text())


def test_what_does_not_stop_is_killed_with_its_jobs(tmp_path):
    assert run_in_box(parent(tmp_path, "ignores"), 3, grace=0.5) is None
    assert not (tmp_path / "checkpoint").exists()
    pid = (tmp_path / "started").read_text()
    wait_for(lambda: not alive(pid))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_time_is_up_stops_the_jobs_too(number, tmp_path):
    pid = os.fork()
    if pid == 0:
        try:
            run_in_box(parent(tmp_path, "heeds"), 60)
        except Interrupted:
            os._exit(42)
        os._exit(1)
    wait_for((tmp_path / "started").exists)
    os.kill(pid, number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    assert (tmp_path / "checkpoint").exists()


def test_interrupts_reach_jobs_of_a_script_in_the_background(tmp_path):
    """A shell has its background processes ignore SIGINT, and children would inherit that."""
    code = "import sys; from harness.run_for import run_in_box; print(run_in_box(sys.argv[1:], 3))"
    command = [sys.executable, "-c", code, *parent(tmp_path, "heeds")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert done.stdout == "None\n"
    assert (tmp_path / "checkpoint").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("time_box")
    shutil.copytree(ROOT / "config", folder / "config")
    (folder / "config" / "scales" / "box.yaml").write_text(yaml.safe_dump(SCALE, sort_keys=False))
    return folder


def start(folder, time_limit):
    command = [sys.executable, "-m", "harness", "run", "--for", time_limit, "--scale", "box"]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def saved_step(folder):
    """Return the step of the last checkpoint, 0 if there is none."""
    pointers = list(folder.glob("results/runs/*/checkpoint/latest.json"))
    return json.loads(pointers[0].read_text())["step"] if pointers else 0


def test_a_workflow_goes_on_after_its_time_until_it_is_interrupted(folder):
    process = start(folder, "4s")
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert re.search(r"^\d of 5 jobs are done$", output, re.MULTILINE)
    assert re.search(r"^left: .*image_optimizers", output, re.MULTILINE)
    assert "the time is up; the same command goes on from here" in output
    process = start(folder, "1h")
    wait_for(lambda: saved_step(folder))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130, output
    assert "stopped before the time was up" in output


def test_a_mistake_ends_before_any_job_with_one_line(folder):
    process = start(folder, "9 minutes")
    output, _ = process.communicate()
    assert process.returncode == 2
    assert output.count("\n") == 1
    assert "expected a time such as 90s, 9m or 1.5h" in output
