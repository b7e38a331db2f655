import os
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from harness.errors import UserError
from harness.training import devices
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


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["0", "1"])
    # What the lease sets is put back after the test.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    def waits(_):
        raise TimeoutError

    # Who has to wait gives up at once.
    monkeypatch.setattr(devices.time, "sleep", waits)


def lease(held: ExitStack, folder, sharing: int) -> str:
    held.enter_context(leased_device("cuda", "x", folder, sharing=sharing))
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("sharing", [1, 2, 3])
def test_jobs_spread_over_gpus_and_no_more_share_one_than_asked(tmp_path, sharing):
    with ExitStack() as held:
        order = [lease(held, tmp_path, sharing) for _ in range(2 * sharing)]
        assert order == ["0", "1"] * sharing
        with pytest.raises(TimeoutError):
            lease(held, tmp_path, sharing)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_a_job_that_wants_a_gpu_alone_neither_joins_nor_is_joined(tmp_path, first, second):
    with ExitStack() as held:
        assert lease(held, tmp_path, first) == "0"
        assert lease(held, tmp_path, second) == "1"
    with ExitStack() as held:
        assert [lease(held, tmp_path, first) for _ in range(2)] == ["0", "1"]
        with pytest.raises(TimeoutError):
            lease(held, tmp_path, second)


@pytest.mark.usefixtures("two_gpus")
def test_a_freed_share_is_taken_again(tmp_path):
    with ExitStack() as held:
        with ExitStack() as short:
            assert [lease(short, tmp_path, 2), lease(held, tmp_path, 2)] == ["0", "1"]
            assert [lease(held, tmp_path, 2), lease(held, tmp_path, 2)] == ["0", "1"]
        assert lease(held, tmp_path, 2) == "0"
