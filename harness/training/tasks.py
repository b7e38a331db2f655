"""What is learned: next tokens or image classes. The loop knows neither.

Shape suffixes: B batch, T sequence positions, C channels, H height, W width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.data.documents import document_ids
from harness.data.images import load_images
from harness.data.text import Split, TokenStream, read_manifest
from harness.data.tokenizers import END_OF_TEXT, load_tokenizer
from harness.models import build_model
from harness.models.airbench import WhitenedConvNet
from harness.models.decoder import Decoder
from harness.models.fp8 import fp8_backend
from harness.training.augmentation import augment, averaged_logits
from harness.training.batches import Batch

Autocast = Callable[[], AbstractContextManager[Any]]
# As many as airbench whitens.
WHITENING_IMAGES = 5000


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
    def evaluate(
        self, model: nn.Module, split: Split, autocast: Autocast, micro_batch: int | None = None
    ) -> dict[str, float]:
        """Return metrics of a held-out split by name.

        Args:
            model: What ``build`` returned.
            split: Which one.
            autocast: The context in which the model computes.
            micro_batch: Examples that pass through the model at a time; None for as many as the
                specification has in training.
        """

    @property
    @abstractmethod
    def examples_per_step(self) -> int:
        """Tokens or images that one optimizer step consumes."""

    @property
    def micro_batch(self) -> int:
        """Examples that the specification has pass through the model at a time."""
        return self.training["batch_size"] // self.training["accumulation"]

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
        documents_BT = self._documents(inputs)
        return cast(Decoder, model).objective(inputs, targets, progress, documents_BT)

    def _documents(self, tokens_BT: Tensor) -> Tensor | None:
        if self.training["attend_across_documents"]:
            return None
        return document_ids(tokens_BT, self._end_of_text)

    @cached_property
    def _end_of_text(self) -> int:
        token = load_tokenizer(self.data).token_to_id(END_OF_TEXT)
        assert token is not None
        return token

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
    def evaluate(
        self, model: nn.Module, split: Split, autocast: Autocast, micro_batch: int | None = None
    ) -> dict[str, float]:
        """Return loss (nats per token) and bits per byte of the original text."""
        if split not in self._heldout:
            self._heldout[split] = TokenStream(self.data, split)
        stream = self._heldout[split]
        losses = []
        windows = self._heldout_indices((len(stream) - 1) // self.length)
        size = micro_batch or self.micro_batch
        for indices in np.split(windows, range(size, len(windows), size)):
            inputs_BT, targets_BT = self._windows(stream, indices)
            with autocast():
                documents_BT = self._documents(inputs_BT)
                loss = cast(Decoder, model).loss(inputs_BT, targets_BT, documents_BT)
                losses.append((loss, len(indices)))
        weight = sum(count for _, count in losses)
        mean = sum(value.item() * count for value, count in losses) / weight
        return {"loss": mean, "bits_per_byte": mean / math.log(2) / stream.bytes_per_token}

    def _heldout_indices(self, count: int) -> np.ndarray:
        """Windows spread evenly over the split, so that few of them still see all of its texts."""
        limit = (self.training["evaluation_batches"] or count) * self.training["batch_size"]
        return np.unique(np.linspace(0, count - 1, min(count, limit)).astype(int))

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
        self._mirrored_first: Tensor | None = None
        self.mean = torch.tensor(self.manifest["mean"], device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(self.manifest["std"], device=device).view(1, -1, 1, 1)

    def build(self) -> nn.Module:
        """Return the model for the dataset's images."""
        model = build_model(
            validate(ModelSpec, self.spec["model"], "model"),
            image_size=self.manifest["size"],
            channels=self.manifest["channels"],
            num_classes=self.manifest["classes"],
        )
        if isinstance(model, WhitenedConvNet):
            images_NCHW, _ = self._split("train")
            model.whiten(self._normalise(images_NCHW[:WHITENING_IMAGES]).cpu())
        return model

    def batch(self, step: int) -> Batch:
        """Return augmented images (B x C x H x W) and their labels (B)."""
        images, labels = self._split("train")
        indices = torch.from_numpy(self._indices(step, len(labels))).to(self.device)
        pixels_BCHW = self._normalise(images[indices])
        if self.training["augmentation"] is not None:
            generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)
            mirrored = None
            if self.training["augmentation"]["flip"] == "alternate":
                mirrored = self._alternating(step, indices, len(labels))
            pixels_BCHW = augment(pixels_BCHW, self.training["augmentation"], generator, mirrored)
        return pixels_BCHW, labels[indices]

    def _alternating(self, step: int, indices_B: Tensor, count: int) -> Tensor:
        """Return which images are mirrored: each in every other epoch, half of them in the first.

        Two epochs show every image from both sides (Jordan, arXiv 2404.00498, section 3.6).
        """
        if self._mirrored_first is None:
            generator = torch.Generator().manual_seed(self.seed)
            self._mirrored_first = (torch.rand(count, generator=generator) < 0.5).to(self.device)
        positions_B = step * len(indices_B) + torch.arange(len(indices_B), device=self.device)
        return self._mirrored_first[indices_B] ^ (positions_B // count % 2 == 1)

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
    def evaluate(
        self, model: nn.Module, split: Split, autocast: Autocast, micro_batch: int | None = None
    ) -> dict[str, float]:
        """Return loss (nats) and accuracy (0 to 1)."""
        images, labels = self._split(split)
        limit = (self.training["evaluation_batches"] or len(labels)) * self.training["batch_size"]
        images, labels = images[:limit], labels[:limit]
        size = micro_batch or self.micro_batch
        loss = correct = 0.0
        for pixels, target in zip(images.split(size), labels.split(size), strict=True):
            with autocast():
                logits = averaged_logits(
                    model, self._normalise(pixels), self.training["evaluation_views"]
                )
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
