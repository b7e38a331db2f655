"""Which device a job computes on, and the lease that keeps two jobs off one GPU.

The lease has to be taken before CUDA starts in the process, because it works by setting
``CUDA_VISIBLE_DEVICES``.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from harness.errors import UserError


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as values for ``CUDA_VISIBLE_DEVICES``."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    try:
        command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]


@contextmanager
def leased_device(kind: str, where: str, locks: Path | None = None) -> Iterator[str]:
    """Hold a device of ``kind`` ("cpu" or "cuda") and yield its torch name.

    A GPU is held by a lock file per device; the kernel frees it when the process ends, however it
    ends. If all are taken, the job waits for one.

    Args:
        kind: The device kind that the scale asks for.
        where: File and key that ask for it.
        locks: Folder of the lock files, shared by all jobs of this user on this machine.

    Raises:
        UserError: If a GPU is asked for and there is none.
    """
    if kind == "cpu":
        yield "cpu"
        return
    gpus = visible_gpus()
    if not gpus:
        raise UserError(f"{where}: found 'cuda', but this machine shows no NVIDIA GPU; expected "
                        "one, or a scale with device: cpu such as 'smoke'")  # fmt: skip
    folder = locks or Path(tempfile.gettempdir()) / f"optrepro-gpus-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    gpu, handle = _wait_for_gpu(gpus, folder)
    try:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        yield "cuda"
    finally:
        handle.close()


def _wait_for_gpu(gpus: list[str], folder: Path) -> tuple[str, IO[str]]:
    waiting = False
    while True:
        for gpu in gpus:
            handle = (folder / f"{gpu}.lock").open("w")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return gpu, handle
            except BlockingIOError:
                handle.close()
        if not waiting:
            print(f"all {len(gpus)} GPUs are leased; waiting for one", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(1)
