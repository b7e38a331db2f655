import os
import subprocess
import sys
import time

import pytest

from harness.errors import UserError
from harness.training.devices import leased_device


def test_no_gpu_is_one_line_before_any_work(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    message = r"gpu\.yaml: device: found 'cuda'.*scale with device: cpu"
    with (
        pytest.raises(UserError, match=message),
        leased_device("cuda", "gpu.yaml: device"),
    ):
        pass


def test_two_jobs_get_two_gpus_and_a_killed_one_frees_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    hold = (
        "import sys, time; from pathlib import Path;"
        "from harness.training.devices import leased_device\n"
        "with leased_device('cuda', 'x', Path(sys.argv[1])):\n"
        "    import os; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE,
                             text=True)  # fmt: skip
    assert other.stdout is not None
    taken = other.stdout.readline().strip()
    with leased_device("cuda", "x", tmp_path):
        assert {taken, os.environ["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", taken)
    other.kill()
    other.wait()
    start = time.monotonic()
    with leased_device("cuda", "x", tmp_path):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == taken
    assert time.monotonic() - start < 5
