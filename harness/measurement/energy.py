"""Energy that a device used, from its own counters: NVML for GPUs, powercap (RAPL) for CPUs.

Counters belong to devices, not to processes: what else runs on the GPU, or on any core of the CPU,
is counted too, and memory beside a CPU is not. A machine without a counter has no energy, never
zero. Nothing is estimated from samples of power.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import pynvml
import torch

from harness.measurement.optimizer_step import timed

POWERCAP = Path("/sys/class/powercap")
MILLI, MICRO = 1e-3, 1e-6
# More watts than a CPU package draws: what bounds the time in which its counter surely wraps
# at most once.
PACKAGE_WATTS = 600

Source = Literal["nvml", "powercap"]


class _Counter(Protocol):
    source: Source

    def joules(self) -> float | None:
        """Return the energy since the counter was made, None if it is not known any more."""
        ...


class EnergyMeter:
    """Energy of a device in joules since construction; as a context manager, within the context.

    Counters of GPUs are renewed some ten times a second: intervals to compare last seconds. Work
    that a GPU has yet to do is not counted, so synchronise before reading. Counters of CPUs wrap
    after some minutes of full load: read them every minute or so, because after a pause in which
    one may have wrapped twice the energy is unknown.

    Attributes:
        source: Which counter is read; None where the device has none.
    """

    def __init__(self, device: torch.device, powercap: Path = POWERCAP) -> None:
        """Start to count.

        Args:
            device: The one that computes.
            powercap: Folder of the kernel's counters of CPUs.
        """
        self._counter = _counter(device, powercap)
        self._final: float | None = None
        self._ended = False
        self.source: Source | None = self._counter.source if self._counter else None

    def joules(self) -> float | None:
        """Return the energy since construction, None where it is not known."""
        if self._ended or self._counter is None:
            return self._final
        with _unreadable():
            return self._counter.joules()
        return None

    def __enter__(self) -> Self:
        """Return the meter, which counts already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Keep the energy until now as the result."""
        self._final, self._ended = self.joules(), True


def energy_of(step: Callable[[], object], device: torch.device, seconds: float) -> float | None:
    """Return the joules of one call of ``step``, repeated for at least ``seconds``.

    Args:
        step: Work for the device; its result is thrown away.
        device: The one whose energy counts; None is returned where it has no counter.
        seconds: Long enough that a counter which is renewed some ten times a second is exact.
    """
    meter = EnergyMeter(device)
    if meter.source is None:
        return None
    calls, elapsed = 0, 0.0
    while elapsed < seconds:
        elapsed += timed(step, device)
        calls += 1
    joules = meter.joules()
    return None if joules is None else joules / calls


def _unreadable() -> suppress:
    """Suppress what a counter raises that is absent, or that only root may read.

    NVML has none for a part of a GPU (MIG), nor for GPUs before Volta.
    """
    return suppress(OSError, pynvml.NVMLError)


def _counter(device: torch.device, powercap: Path) -> _Counter | None:
    with _unreadable():
        if device.type == "cuda":
            return _Gpu(device)
        if device.type == "cpu":
            return _Packages(powercap)
    return None


class _Gpu:
    """The total of ``nvmlDeviceGetTotalEnergyConsumption``: mJ since the driver was loaded."""

    source: Source = "nvml"

    def __init__(self, device: torch.device) -> None:
        pynvml.nvmlInit()
        # Not by index: CUDA_VISIBLE_DEVICES renumbers CUDA's devices, not NVML's.
        uuid = torch.cuda.get_device_properties(device).uuid
        self._handle: Any = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        self._start: int = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)

    def joules(self) -> float | None:
        total = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        return (total - self._start) * MILLI


class _Packages:
    """The sum over CPU packages of ``energy_uj``, which starts anew at ``max_energy_range_uj``."""

    source: Source = "powercap"

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        # A package holds its parts (core, uncore), which are zones too; psys holds all packages.
        self._zones = [
            zone
            for zone in sorted(folder.glob("intel-rapl:*"))
            if (zone / "name").read_text().startswith("package")
        ]
        if not self._zones:
            raise FileNotFoundError(folder)
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in self._zones]
        self._longest_pause = min(self._ranges) * MICRO / PACKAGE_WATTS
        self._clock = clock
        self._last, self._time = self._read(), clock()
        self._total: float | None = 0.0

    def joules(self) -> float | None:
        if self._total is None:
            return None
        values, now = self._read(), self._clock()
        if now - self._time > self._longest_pause:
            self._total = None
            return None
        zones = zip(values, self._last, self._ranges, strict=True)
        self._total += MICRO * sum((new - old) % limit for new, old, limit in zones)
        self._last, self._time = values, now
        return self._total

    def _read(self) -> list[int]:
        return [_number(zone / "energy_uj") for zone in self._zones]


def _number(file: Path) -> int:
    return int(file.read_text())
