"""One training run, from a resolved specification to a summary; interruptible at any step."""

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from harness.errors import Interrupted, UserError
from harness.records.provenance import environment
from harness.records.run_folder import RunFolder
from harness.training.compilation import set_float32_products
from harness.training.run import NonFiniteLoss, Progress, Run
from harness.training.step import (
    Coefficients,
    TrainingStep,
    finer_accumulation,
    micro_batches_matter,
)

# What CUDA and its libraries say where they, and not torch's allocator, found no memory.
NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def run_training(
    spec: Mapping[str, Any],
    folder: RunFolder,
    data: Path,
    device: str,
    coefficients: Coefficients | None,
    *,
    checkpoint_seconds: float,
    keep_weights: bool,
    progress: Progress,
    stop: Callable[[], bool],
    shared_device: bool = False,
) -> dict[str, Any]:
    """Train the run of ``spec``, or return the summary that it already has.

    Divergence and lack of memory are results, and so is any other exception of a run: each is
    recorded as the run's status and never stops the rest of a sweep. Storage that fails says
    nothing about a run: it ends the job, and the next one goes on from the last checkpoint. A run
    that is out of memory goes on from its last checkpoint with smaller micro-batches as long as
    there are any and they change nothing but rounding; the summary says how many times.

    Args:
        spec: Resolved training specification with learning rate and seed.
        folder: Where the run lives.
        data: Folder of the prepared dataset.
        device: torch device to train on.
        coefficients: AdaNewton coefficients by matrix shape, for optimizers that need them.
        checkpoint_seconds: Wall time between checkpoints.
        keep_weights: Whether the final weights are needed for evaluation.
        progress: Called with step, steps and the last loss.
        stop: Asked between steps whether to save the state and stop.
        shared_device: Whether other jobs may compute on the device: then its energy is not the
            run's, and is not recorded.

    Raises:
        Interrupted: When ``stop`` says so, after saving a checkpoint.
        UserError: If data or checkpoint are not what they should be, or cannot be read or written.
    """
    with _storage(folder), folder.lock():
        done = folder.outcome(keep_weights)
        if done is not None:
            return done
        folder.write_spec(spec)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        products = set_float32_products()

        def build(accumulation: int) -> Run:
            place = torch.device(device)
            return Run(spec, folder, data, place, coefficients, accumulation, shared_device)

        def train(run: Run) -> dict[str, Any]:
            metrics = run.train(checkpoint_seconds, progress, stop)
            if keep_weights:
                _save_weights(run.step.model, folder.weights)
            return metrics

        outcome, backends = _outcome(build, train, spec["training"]["accumulation"])
        threads = {"threads": torch.get_num_threads()}
        summary = {
            "run_id": folder.run_id,
            "reason": None,
            "spec": spec,
            "environment": environment() | threads | products | backends,
            "started": started,
            "metrics_sha256": folder.metrics_sha256(),
            **outcome,
        }
        folder.write_summary(summary)
        return summary


@contextmanager
def _storage(folder: RunFolder) -> Iterator[None]:
    """Turn a disk that is full or fails into one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # What fails while it is written to has no name.
        path = getattr(error, "filename", None) or folder.path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}, expected files that can be read and written; nothing "
                        "is recorded as the run's outcome, and 'snakemake' goes on from its last "
                        "checkpoint once this is mended") from error  # fmt: skip


def _outcome(
    build: Callable[[int], Run], train: Callable[[Run], dict[str, Any]], accumulation: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return how the run ended, with smaller micro-batches if it has to, and its backends."""
    retries = 0
    while True:
        outcome, backends = _attempt(build, train, accumulation)
        finer = outcome.pop("retry_with", None)
        if finer is None:
            return outcome | {"out_of_memory_retries": retries}, backends
        accumulation, retries = finer, retries + 1
        # Only here, after the attempt's own frames are gone, is what it held free.
        gc.collect()
        torch.cuda.empty_cache()


def _attempt(
    build: Callable[[int], Run], train: Callable[[Run], dict[str, Any]], accumulation: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return how one attempt ended; ``retry_with`` is the accumulation of another one."""
    run, backends = None, {}
    try:
        run = build(accumulation)
        backends = run.step.task.backends(run.step.model)
        outcome = train(run) | {"status": "completed"}
    except NonFiniteLoss as error:
        outcome = {"status": "diverged", "reason": str(error)}
    except (Interrupted, UserError, OSError, SafetensorError):
        raise
    except Exception as error:
        if _lacks_memory(error):
            reason = (str(error) or "out of host memory").splitlines()[0]
            outcome = {"status": "out_of_memory", "reason": reason}
            if run is not None:
                outcome |= _retry(run.step, reason)
        else:
            traceback.print_exc()
            outcome = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    finally:
        if run is not None:
            run.step.close()
    outcome |= {"seconds": run.seconds if run is not None else None}
    if run is not None:
        outcome |= {"accumulation": run.step.accumulation}
    return outcome, backends


def _lacks_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def _retry(step: TrainingStep, reason: str) -> dict[str, Any]:
    matter = micro_batches_matter(step.model)
    finer = finer_accumulation(step.training["batch_size"], step.accumulation)
    if finer is not None and matter is not None:
        return {"reason": f"{reason} (not tried with smaller micro-batches, which {matter} sees)"}
    return {"retry_with": finer}


def _save_weights(model: nn.Module, path: Path) -> None:
    partial = path.with_suffix(".partial")
    # Tied weights share storage, which safetensors refuses; clones are written instead.
    try:
        save_file({k: v.detach().cpu().clone() for k, v in model.state_dict().items()}, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
