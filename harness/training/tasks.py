"""What is learned: next tokens or image classes. The loop knows neither.

Shape suffixes: B batch, T sequence positions, C channels, H height, W width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.data.images import load_images
from harness.data.text import Split, TokenStream, read_manifest
from harness.models import build_model
from harness.models.decoder import Decoder
from harness.models.fp8 import fp8_backend
from harness.training.augmentation import augment

Batch = tuple[Tensor, Tensor]
Autocast = Callable[[], AbstractContextManager[Any]]


class Task(ABC):
    """A model to build, batches in an order fixed by seed and step, and metrics to report."""

    def __init__(self, spec: Mapping[str, Any], data: Path, device: torch.device) -> None:
        self.spec, self.data, self.device = spec, data, device
        self.training = spec["training"]
        self.seed = spec["seed"]
        self.manifest = read_manifest(data)
        self._order: tuple[int, np.ndarray] | None = None

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the model with weights drawn from torch's global generator."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """Return inputs and targets of ``step``; the same for every optimizer with this seed."""

    @abstractmethod
    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Return what training minimises on a (micro-)batch, and the mean loss that is part of it.

        Args:
            model: What ``build`` returned.
            inputs: Of ``batch``.
            targets: Of ``batch``.
            progress: Share of the steps taken so far.
        """

    def after_step(self, model: nn.Module, progress: float) -> None:  # noqa: B027  # few models do
        """Let the model change what no optimizer does; called after each optimizer step."""

    def statistics(self, model: nn.Module) -> dict[str, float]:
        """Return what the model counted since the last call, by name."""
        return {}

    def backends(self, model: nn.Module) -> dict[str, str]:
        """Return how this machine computes what not every machine can."""
        return {}

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Split, autocast: Autocast) -> dict[str, float]:
        """Return metrics of a held-out split by name."""

    @property
    @abstractmethod
    def examples_per_step(self) -> int:
        """Tokens or images that one optimizer step consumes."""

    def _indices(self, step: int, count: int) -> np.ndarray:
        """Indices of the examples of ``step``: a fresh permutation of ``count`` in each epoch."""
        size = self.training["batch_size"]
        picked = []
        position = step * size
        while size > 0:
            epoch, offset = divmod(position, count)
            if self._order is None or self._order[0] != epoch:
                order = np.random.default_rng((self.seed, epoch)).permutation(count)
                self._order = (epoch, order)
            picked.append(self._order[1][offset : offset + size])
            position, size = position + len(picked[-1]), size - len(picked[-1])
        return np.concatenate(picked)


class LanguageTask(Task):
    """Next-token prediction on windows of a token stream."""

    def __init__(self, spec: Mapping[str, Any], data: Path, device: torch.device) -> None:
        super().__init__(spec, data, device)
        self.length = self.training["sequence_length"]
        self.stream = TokenStream(data, "train")
        self._heldout: dict[Split, TokenStream] = {}

    def build(self) -> nn.Module:
        """Return the model for the dataset's vocabulary."""
        model_spec = validate(ModelSpec, self.spec["model"], "model")
        return build_model(model_spec, vocab_size=self.manifest["vocab_size"])

    def batch(self, step: int) -> Batch:
        """Return token windows and the tokens that follow (B x T each)."""
        indices = self._indices(step, (len(self.stream) - 1) // self.length)
        return self._windows(self.stream, indices)

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Return the objective and its mean cross-entropy in nats per token."""
        return cast(Decoder, model).objective(inputs, targets, progress)

    def after_step(self, model: nn.Module, progress: float) -> None:
        """Move the routing biases of experts."""
        cast(Decoder, model).after_step(progress)

    def statistics(self, model: nn.Module) -> dict[str, float]:
        """Return the load of the experts, mean over the layers and by layer."""
        return cast(Decoder, model).statistics()

    def backends(self, model: nn.Module) -> dict[str, str]:
        """Return whether FP8 products ran on tensor cores or were emulated."""
        fp8 = cast(Decoder, model).spec.linear
        return {} if fp8 is None else {"fp8_backend": fp8_backend(fp8, self.device)}

    @property
    def examples_per_step(self) -> int:
        """Tokens that one optimizer step consumes."""
        return self.training["batch_size"] * self.length

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split, autocast: Autocast) -> dict[str, float]:
        """Return loss (nats per token) and bits per byte of the original text."""
        if split not in self._heldout:
            self._heldout[split] = TokenStream(self.data, split)
        stream = self._heldout[split]
        losses = []
        for indices in self._heldout_indices((len(stream) - 1) // self.length):
            inputs_BT, targets_BT = self._windows(stream, indices)
            with autocast():
                losses.append((cast(Decoder, model).loss(inputs_BT, targets_BT), len(indices)))
        weight = sum(count for _, count in losses)
        loss = sum(value.item() * count for value, count in losses) / weight
        return {"loss": loss, "bits_per_byte": loss / math.log(2) / stream.bytes_per_token}

    def _heldout_indices(self, count: int) -> Iterator[np.ndarray]:
        """Windows spread evenly over the split, so that few of them still see all of its texts."""
        size = self.training["batch_size"]
        limit = (self.training["evaluation_batches"] or count) * size
        picked = np.unique(np.linspace(0, count - 1, min(count, limit)).astype(int))
        yield from (picked[start : start + size] for start in range(0, len(picked), size))

    def _windows(self, stream: TokenStream, indices: np.ndarray) -> Batch:
        rows = [stream.read(int(index) * self.length, self.length + 1) for index in indices]
        tokens = torch.from_numpy(np.stack(rows))
        if self.device.type == "cuda":
            tokens = tokens.pin_memory().to(self.device, non_blocking=True)
        return tokens[:, :-1], tokens[:, 1:]


class ImageTask(Task):
    """Image classification with the whole training set resident on the device as bytes."""

    def __init__(self, spec: Mapping[str, Any], data: Path, device: torch.device) -> None:
        super().__init__(spec, data, device)
        self.splits: dict[Split, tuple[Tensor, Tensor]] = {}
        self.mean = torch.tensor(self.manifest["mean"], device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(self.manifest["std"], device=device).view(1, -1, 1, 1)

    def build(self) -> nn.Module:
        """Return the model for the dataset's images."""
        return build_model(
            validate(ModelSpec, self.spec["model"], "model"),
            image_size=self.manifest["size"],
            channels=self.manifest["channels"],
            num_classes=self.manifest["classes"],
        )

    def batch(self, step: int) -> Batch:
        """Return augmented images (B x C x H x W) and their labels (B)."""
        images, labels = self._split("train")
        indices = torch.from_numpy(self._indices(step, len(labels))).to(self.device)
        pixels_BCHW = self._normalise(images[indices])
        if self.training["augmentation"] is not None:
            generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)
            pixels_BCHW = augment(pixels_BCHW, self.training["augmentation"], generator)
        return pixels_BCHW, labels[indices]

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy in nats, twice."""
        smoothing = self.training["label_smoothing"]
        loss = F.cross_entropy(model(inputs).float(), targets, label_smoothing=smoothing)
        return loss, loss

    @property
    def examples_per_step(self) -> int:
        """Images that one optimizer step consumes."""
        return self.training["batch_size"]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split, autocast: Autocast) -> dict[str, float]:
        """Return loss (nats) and accuracy (0 to 1)."""
        images, labels = self._split(split)
        size = self.training["batch_size"]
        limit = (self.training["evaluation_batches"] or len(labels)) * size
        images, labels = images[:limit], labels[:limit]
        loss = correct = 0.0
        for start in range(0, len(labels), size):
            target = labels[start : start + size]
            with autocast():
                logits = model(self._normalise(images[start : start + size])).float()
            loss += F.cross_entropy(logits, target, reduction="sum").item()
            correct += (logits.argmax(-1) == target).sum().item()
        return {"loss": loss / len(labels), "accuracy": correct / len(labels)}

    def _split(self, split: Split) -> tuple[Tensor, Tensor]:
        if split not in self.splits:
            self.splits[split] = load_images(self.data, split, self.device)
        return self.splits[split]

    def _normalise(self, images_BCHW: Tensor) -> Tensor:
        return (images_BCHW.float() / 255 - self.mean) / self.std


def make_task(spec: Mapping[str, Any], data: Path, device: torch.device) -> Task:
    """Return the task of a resolved training specification on the prepared dataset ``data``."""
    kind = {"language": LanguageTask, "images": ImageTask}[spec["task"]]
    return kind(spec, data, device)
