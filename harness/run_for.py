"""A workflow for a limited time: what is done is kept, and the rest goes on next time.

Snakemake gets the signal of Ctrl-C, and so do its jobs: training writes a checkpoint, other jobs
start anew next time. Files appear whole or not at all, so that even a job that has to be killed
leaves nothing broken.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.config.catalog import load_catalog
from harness.errors import Interrupted, UserError
from harness.jobs.collect import collect_so_far
from harness.jobs.context import Context

ROOT = Path(__file__).parents[1]
UNITS = {"s": 1, "m": 60, "h": 3600}
# To finish a training step and write a checkpoint.
GRACE_SECONDS = 120.0


def parse_duration(text: str) -> float:
    """Return the seconds of ``90s``, ``9m`` or ``1.5h``.

    Raises:
        UserError: If ``text`` is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) == 0:
        raise UserError(f"--for: found '{text}', expected a time such as 90s, 9m or 1.5h")
    return float(match[1]) * UNITS[match[2]]


def run_for(seconds: float, config: Path, scale: str) -> Iterator[str]:
    """Run the workflow of ``scale`` for at most ``seconds`` and yield what to tell the user.

    Args:
        seconds: After them the workflow is told to stop; to stop takes some more.
        config: Folder of the configuration.
        scale: Name in ``config/scales``.

    Raises:
        UserError: If the configuration is wrong, or snakemake ends with an error.
        Interrupted: If the user stopped it before the time was up.
    """
    context = Context(load_catalog(config, scale), Path("results"))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"),
               "--workflow-profile", str(ROOT / "profiles" / "default"),
               "--config", f"config={config}", f"scale={scale}"]  # fmt: skip
    status = run_in_box(command, seconds)
    done = [job for job in context.jobs.values() if context.output(job).is_file()]
    yield f"{len(done)} of {len(context.jobs)} jobs are done"
    if status is None:
        left = {job.experiment for job in context.jobs.values() if job not in done}
        names = [name for name in context.catalog.experiments if name in left]
        if names:
            yield f"left: {', '.join(names)}"
        yield "the time is up; the same command goes on from here"
    if status == 0:
        return
    if done:
        yield f"report of that: snakemake report --config records={collect_so_far(context)}"
    if status:
        raise UserError(f"snakemake: ended with status {status}, see above; what is done is kept")


def run_in_box(command: Sequence[str], seconds: float, grace: float = GRACE_SECONDS) -> int | None:
    """Run ``command`` and return its exit status, None if its time was up.

    It runs in a process group of its own, all of which gets SIGINT when the time is up, and SIGKILL
    if it has not ended ``grace`` seconds later or the user does not want to wait for it.

    Args:
        command: Program and arguments.
        seconds: Before it is told to stop.
        grace: Seconds to stop in.

    Raises:
        Interrupted: If this process gets SIGINT or SIGTERM before; the group has ended then, too.
    """
    # In the background of a script SIGINT is ignored, and children inherit that.
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=_heed_interrupts)
    try:
        with _terminations_as_interrupts():
            return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    except KeyboardInterrupt:
        raise Interrupted("stopped before the time was up") from None
    finally:
        _stop(process, grace)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _terminations_as_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(process: subprocess.Popen[bytes], grace: float) -> None:
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(grace)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
