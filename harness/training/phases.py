"""Where the time of a run goes, by phase, without making the device wait."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

# What a run does, in this order. Phases of the host are those in which the device has nothing to
# do or is waited for anyway; of the others the device's own time counts.
HOST_PHASES = ("data", "evaluation", "checkpoint")
DEVICE_PHASES = ("forward_backward", "optimizer")


class PhaseClock:
    """Sums up seconds by phase.

    On CUDA the phases of a step are enclosed by events, whose times are read when the host waits
    for the device anyway. Elsewhere the host's clock tells all of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time within the context to one of ``HOST_PHASES`` or ``DEVICE_PHASES``."""
        if self._on_device and name in DEVICE_PHASES:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
            return
        began = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - began

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add what an earlier part of the run has counted."""
        for name, value in seconds.items():
            self._seconds[name] += value

    def collect(self) -> None:
        """Read the events so far; to be called when the device has nothing left to do."""
        for name, start, end in self._events:
            end.synchronize()
            self._seconds[name] += start.elapsed_time(end) / 1000
        self._events.clear()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every phase, zero for one that did not occur."""
        self.collect()
        return {name: self._seconds[name] for name in (*HOST_PHASES, *DEVICE_PHASES)}
