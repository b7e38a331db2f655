"""Batches in the order of steps; on CUDA the next one is on its way while the device computes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
# A batch, and the event after its copy to the device.
Prepared = tuple[Batch, torch.cuda.Event | None]


class Batches:
    """Reads the batches of a run one ahead, in a thread with a stream of its own.

    ``read`` must depend on the step alone: then what it returns is the same one ahead. On a CPU,
    whose cores compute already, every batch is read when it is asked for.
    """

    def __init__(
        self,
        read: Callable[[int], Batch],
        steps: int,
        device: torch.device,
        *,
        ahead: bool | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            read: Returns the batch of a step, on ``device``.
            steps: How many there are.
            device: The one that computes.
            ahead: Whether to read one ahead; None for doing so on CUDA.
        """
        self._read, self._steps, self._device = read, steps, device
        ahead = device.type == "cuda" if ahead is None else ahead
        self._thread = ThreadPoolExecutor(1, "batches") if ahead else None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: tuple[int, Future[Prepared]] | None = None

    def take(self, step: int) -> Batch:
        """Return the batch of ``step``, and start on the one after it."""
        if self._thread is None:
            return self._read(step)
        if self._next is None or self._next[0] != step:
            self._next = step, self._thread.submit(self._prepare, step)
        batch, copied = self._next[1].result()
        self._next = None
        if step + 1 < self._steps:
            self._next = step + 1, self._thread.submit(self._prepare, step + 1)
        if copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for tensor in batch:
                # Its memory belongs to the other stream, which must not reuse it too early.
                tensor.record_stream(current)
        return batch

    def close(self) -> None:
        """End the thread and forget the batch that it has read."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._next = None

    def _prepare(self, step: int) -> Prepared:
        if self._stream is None:
            return self._read(step), None
        with torch.cuda.stream(self._stream):
            batch = self._read(step)
            return batch, self._stream.record_event()
