"""The state of a training run in progress: its steps, records, checkpoints and times."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from harness.errors import Interrupted
from harness.measurement.energy import EnergyMeter
from harness.records.run_folder import RunFolder
from harness.training.checkpoint import load_checkpoint, save_checkpoint, weights_sha256
from harness.training.recorder import Recorder
from harness.training.step import Coefficients, TrainingStep
from harness.training.utilization import bfloat16_peak, flops_per_example, utilization

Progress = Callable[[int, int, float], None]
# All other metrics are ratios.
UNITS = {"loss": "nats", "bits_per_byte": "bit/B"}


class NonFiniteLoss(Exception):
    """The loss is infinite or not a number."""


class Run:
    """A run that goes on from its last checkpoint, if there is one.

    Attributes:
        step: Model, optimizer and data.
        taken: Steps taken so far.
        seconds: Time of training so far, without evaluation and checkpoints.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        folder: RunFolder,
        data: Path,
        device: torch.device,
        coefficients: Coefficients | None,
        accumulation: int,
        shared_device: bool,
    ) -> None:
        """Build the run and load its last checkpoint.

        Args:
            spec: Resolved training specification with learning rate and seed.
            folder: Where the run lives.
            data: Folder of the prepared dataset.
            device: To train on.
            coefficients: AdaNewton coefficients by matrix shape, for optimizers that need them.
            accumulation: Micro-batches per step, or more if the checkpoint says so.
            shared_device: Whether other jobs may compute on the device.
        """
        self.spec, self.training = spec, spec["training"]
        self.folder, self.device = folder, device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.step = TrainingStep(spec, data, device, coefficients, accumulation)
        self.recorder = Recorder(folder, self.step.model, self.step.optimizer, self.training)
        self.meter = None if shared_device else EnergyMeter(device)
        self.joules: float | None = 0.0
        self.taken = 0
        self.seconds = 0.0
        self.interval_times: list[float] = []
        self._resume()

    def train(
        self, checkpoint_seconds: float, progress: Progress, stop: Callable[[], bool]
    ) -> dict[str, Any]:
        """Take the remaining steps and return the final metrics."""
        steps = self.training["steps"]
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        saved = clock = time.perf_counter()
        while self.taken < steps:
            loss, norm = self.step.take(self.taken, self.recorder.after_step)
            losses.append(loss)
            norms.append(norm)
            self.taken += 1
            if self.taken % self.training["log_interval"] and self.taken < steps:
                continue
            mean_loss = self._log(losses, norms)
            self._count_time(clock, len(losses))
            progress(self.taken, steps, mean_loss)
            losses, norms = [], []
            self._validate(steps)
            if self.taken < steps and (stop() or time.perf_counter() - saved > checkpoint_seconds):
                self._save()
                saved = time.perf_counter()
                if stop():
                    raise Interrupted(f"stopped at step {self.taken} of {steps}")
            clock = time.perf_counter()
        return self._finish()

    def _log(self, losses: list[Tensor], norms: list[Tensor]) -> float:
        # The only place where the host waits for the device.
        loss = torch.stack(losses).mean().item()
        norm = torch.stack(norms).mean().item()
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"loss {loss} at step {self.taken}")
        statistics = self.step.task.statistics(self.step.model)
        self._record("train", {"loss": loss, "gradient_norm": norm, **statistics})
        return loss

    def _count_time(self, clock: float, steps: int) -> None:
        elapsed = time.perf_counter() - clock - self.recorder.take_seconds()
        self.seconds += elapsed
        self.interval_times.append(elapsed / steps)
        # Nothing is left to wait for here, and counters of energy want to be read now and then.
        self.step.clock.collect()
        self._energy()

    def _energy(self) -> float | None:
        """Return the energy of the device over all parts of the run, None if it is not known."""
        measured = None if self.meter is None else self.meter.joules()
        return None if measured is None or self.joules is None else self.joules + measured

    def _validate(self, steps: int) -> None:
        if self.taken % self.training["evaluation_interval"] == 0 or self.taken == steps:
            self._record("validation", self._evaluate("validation"))

    def _evaluate(self, split: Any) -> dict[str, float]:
        step = self.step
        with step.clock.phase("evaluation"):
            step.model.eval()
            metrics = step.task.evaluate(step.model, split, step.autocast, step.micro_batch)
            step.model.train()
        return metrics

    def _record(self, prefix: str, metrics: Mapping[str, float]) -> None:
        rows = [
            {
                "step": self.taken,
                "metric": f"{prefix}/{name}",
                "value": value,
                "unit": UNITS.get(name, "1"),
            }
            for name, value in metrics.items()
            if math.isfinite(value)
        ]
        self.folder.append_metrics(rows)

    def _finish(self) -> dict[str, Any]:
        self._record("test", self._evaluate("test"))
        model = self.step.model
        return {
            "weights_sha256": weights_sha256(model.state_dict()),
            "parameters": sum(p.numel() for p in model.parameters()),
            **self._throughput(),
            "snapshots": self.recorder.steps,
        }

    def _throughput(self) -> dict[str, Any]:
        # The first interval pays for warming up caches and allocators, and for compilation.
        per_step = median(self.interval_times[1:] or self.interval_times)
        rate = self.step.task.examples_per_step / per_step
        cuda = self.device.type == "cuda"
        flops = flops_per_example(self.spec, self.step.task.manifest)
        flops_rate = None if flops is None else flops * rate
        return {
            "seconds_per_step": per_step,
            "examples_per_second": rate,
            "model_flops_per_second": flops_rate,
            "utilization": utilization(self.spec, flops_rate, bfloat16_peak(self.device)),
            "peak_memory_bytes": torch.cuda.max_memory_allocated(self.device) if cuda else None,
            "joules": self._energy(),
            "energy_source": None if self.meter is None else self.meter.source,
            "phase_seconds": self.step.clock.seconds(),
        }

    def _save(self) -> None:
        with self.step.clock.phase("checkpoint"):
            save_checkpoint(self.folder.checkpoints, self.taken, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.step.model.state_dict(),
            "optimizer": self.step.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "step": self.taken,
            "seconds": self.seconds,
            "interval_times": self.interval_times,
            "accumulation": self.step.accumulation,
            "phase_seconds": self.step.clock.seconds(),
            "joules": self._energy(),
        }

    def _resume(self) -> None:
        state = load_checkpoint(self.folder.checkpoints, self.device)
        if state is not None:
            self.step.model.load_state_dict(state["model"])
            self.step.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["random"].cpu())
            self.taken, self.seconds = state["step"], state["seconds"]
            self.interval_times = state["interval_times"]
            # A run that was out of memory before it was stopped would be so again.
            self.step.accumulation = max(self.step.accumulation, state["accumulation"])
            self.step.clock.add(state["phase_seconds"])
            self.joules = state["joules"]
        self.folder.truncate_metrics(self.taken)
