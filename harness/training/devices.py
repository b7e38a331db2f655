"""Which device a job computes on, and the lease that keeps two jobs off one GPU, unless asked.

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
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

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
def leased_device(
    kind: str, where: str, locks: Path | None = None, *, sharing: int = 1
) -> Iterator[str]:
    """Hold a device of ``kind`` ("cpu" or "cuda") and yield its torch name.

    A GPU is held by a lock file per device; the kernel frees it when the process ends, however it
    ends. If all are taken, the job waits for one. A GPU that jobs share is never given to one that
    wants it alone, nor the reverse.

    Args:
        kind: The device kind that the scale asks for.
        where: File and key that ask for it.
        locks: Folder of the lock files, shared by all jobs of this user on this machine.
        sharing: How many jobs that say so may hold one GPU at a time; 1 to have it alone.

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
    with _wait_for_gpu(gpus, folder, sharing) as gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        yield "cuda"


@contextmanager
def _wait_for_gpu(gpus: list[str], folder: Path, sharing: int) -> Iterator[str]:
    waiting = False
    while True:
        # First the GPUs with the fewest jobs.
        for slot, gpu in product(range(sharing), gpus):
            with ExitStack() as held:
                if _take(gpu, slot, folder, sharing, held):
                    yield gpu
                    return
        if not waiting:
            print(f"all {len(gpus)} GPUs are leased; waiting for one", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(1)


def _take(gpu: str, slot: int, folder: Path, sharing: int, held: ExitStack) -> bool:
    """Return whether this process now holds a slot of ``gpu``, until ``held`` is closed."""
    whole = folder / f"{gpu}.lock"
    if sharing == 1:
        return _lock(whole, fcntl.LOCK_EX, held)
    part = folder / f"{gpu}.{slot}.lock"
    return _lock(whole, fcntl.LOCK_SH, held) and _lock(part, fcntl.LOCK_EX, held)


def _lock(path: Path, kind: int, held: ExitStack) -> bool:
    file = held.enter_context(path.open("w"))
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
