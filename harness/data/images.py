"""Images that are decoded once to unsigned bytes and kept whole on the training device.

A prepared dataset is a folder with ``manifest.json`` and, per split, ``<split>_images.npy``
(uint8, N x C x H x W) and ``<split>_labels.npy`` (int64, N).
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.data.digests import has_digest
from harness.data.locations import locate
from harness.data.text import SPLITS, Split, read_manifest
from harness.errors import UserError
from harness.files import sha256_of, write_atomically, write_json

# The split of images into training and validation is part of the dataset, not of a run.
SPLIT_SEED = 0


class LabelledImages(NamedTuple):
    """Images (uint8, N x C x H x W) and their class labels (int64, N)."""

    images: np.ndarray
    labels: np.ndarray


def prepare_images(spec: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Decode the source of ``spec`` into ``folder`` and return the manifest.

    Raises:
        UserError: If the source is missing.
    """
    train, test = _read_source(spec, where)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train.labels))
    if test is None:
        count = round(spec["test_fraction"] * len(order))
        test = _take(train, order[:count])
        order = order[count:]
    count = round(spec["validation_fraction"] * len(order))
    splits = {
        "train": _take(train, order[count:]),
        "validation": _take(train, order[:count]),
        "test": test,
    }
    pixels = splits["train"].images / 255
    manifest = {
        "kind": "images",
        "spec": spec,
        "classes": int(train.labels.max()) + 1,
        "channels": train.images.shape[1],
        "size": train.images.shape[2],
        "mean": pixels.mean(axis=(0, 2, 3)).tolist(),
        "std": pixels.std(axis=(0, 2, 3)).tolist(),
        "splits": {split: _write_split(folder, split, data) for split, data in splits.items()},
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def load_images(folder: Path, split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images (uint8, N x C x H x W) and labels (int64, N) of ``split`` on ``device``.

    Raises:
        UserError: If the dataset was not prepared or a file is not what the manifest says.
    """
    entry = read_manifest(folder)["splits"][split]
    arrays = []
    for name in ("images", "labels"):
        path = folder / f"{split}_{name}.npy"
        if not has_digest(path, entry[f"{name}_sha256"]):
            raise UserError(
                f"{path}: missing or differs from its digest; delete "
                f"{folder / 'manifest.json'} to prepare the dataset again"
            )
        arrays.append(torch.from_numpy(np.load(path)).to(device))
    return arrays[0], arrays[1]


def _take(data: LabelledImages, indices: np.ndarray) -> LabelledImages:
    return LabelledImages(data.images[indices], data.labels[indices])


def _write_split(folder: Path, split: str, data: LabelledImages) -> dict[str, Any]:
    assert split in SPLITS
    entry: dict[str, Any] = {"images": len(data.labels)}
    for name, array in data._asdict().items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        path = folder / f"{split}_{name}.npy"
        write_atomically(path, buffer.getvalue())
        entry[f"{name}_sha256"] = sha256_of(path)
    return entry


def _read_source(
    spec: Mapping[str, Any], where: str
) -> tuple[LabelledImages, LabelledImages | None]:
    source = spec["source"]
    if source["type"] == "sklearn_digits":
        if spec["test_fraction"] is None:
            raise UserError(f"{where}.test_fraction: missing; sklearn_digits has no test set")
        return _digits(), None
    if source["type"] == "torchvision_cifar10":
        return _torchvision_cifar10(source["root"], where)
    folder = locate(source["path"], f"{where}.source.path")
    train, test = (_parquet(folder / f"{split}.parquet", source, where) for split in
                   ("train", "test"))  # fmt: skip
    return train, test


def _digits() -> LabelledImages:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[:, None] * (255 / 16)).round().astype(np.uint8)
    return LabelledImages(images, digits.target.astype(np.int64))


def _torchvision_cifar10(root: str, where: str) -> tuple[LabelledImages, LabelledImages]:
    from harness.torchvision_import import import_torchvision

    folder = locate(root, f"{where}.source.root", create=True)
    datasets = import_torchvision().datasets
    parts = []
    for is_train in (True, False):
        try:
            part = datasets.CIFAR10(str(folder), train=is_train, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{where}.source.root: no CIFAR-10 in '{folder}' and it cannot be downloaded "
                f"({str(error).splitlines()[0]}); expected cifar-10-batches-py there"
            ) from error
        labels = np.array(part.targets, dtype=np.int64)
        parts.append(LabelledImages(part.data.transpose(0, 3, 1, 2).copy(), labels))
    return parts[0], parts[1]


def _parquet(path: Path, source: Mapping[str, Any], where: str) -> LabelledImages:
    import pyarrow.parquet
    from PIL import Image

    if not path.is_file():
        raise UserError(f"{where}.source.path: '{path}' does not exist")
    table = pyarrow.parquet.read_table(path)
    for key in ("image_column", "label_column"):
        if source[key] not in table.column_names:
            raise UserError(
                f"{where}.source.{key}: found '{source[key]}', expected one of "
                f"{table.column_names} ({path.name})"
            )
    encoded = table.column(source["image_column"]).to_pylist()
    decoded = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in encoded]
    labels = table.column(source["label_column"]).to_numpy().astype(np.int64)
    return LabelledImages(np.stack(decoded).transpose(0, 3, 1, 2).copy(), labels)
