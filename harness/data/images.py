"""Images that are decoded once to unsigned bytes and kept whole on the training device.

A prepared dataset is a folder with ``manifest.json`` and, per split, ``<split>_images.npy``
(uint8, N x C x H x W) and ``<split>_labels.npy`` (int64, N).
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.data.digests import has_digest
from harness.data.locations import locate
from harness.data.prepared_files import MANIFEST, PROGRESS, read_object, source_changed
from harness.data.text import SPLITS, Split, read_manifest
from harness.errors import UserError, first_line
from harness.files import write_atomically, write_json

# The split of images into training and validation is part of the dataset, not of a run.
SPLIT_SEED = 0


class LabelledImages(NamedTuple):
    """Images (uint8, N x C x H x W) and their class labels (int64, N)."""

    images: np.ndarray
    labels: np.ndarray


def prepare_images(spec: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Decode the source of ``spec`` into ``folder`` and return the manifest.

    Raises:
        UserError: If the source is missing or damaged, or ``folder`` was prepared from others.
    """
    if (folder / MANIFEST).is_file() and not (folder / PROGRESS).is_file():
        # From a bundle: it is whole, and its source need not be on this machine.
        for split in SPLITS:
            load_images(folder, split, torch.device("cpu"))
        return read_manifest(folder)
    train, test = _read_source(spec, where)
    if test is not None:
        _check_test(train, test, where)
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
        "splits": {split: _entry(data) for split, data in splits.items()},
    }
    _refuse_others(folder, manifest["splits"], where)
    for name, data in splits.items():
        for part, array in data._asdict().items():
            write_atomically(folder / f"{name}_{part}.npy", _npy(array))
    write_json(folder / PROGRESS, {"splits": manifest["splits"]})
    write_json(folder / MANIFEST, manifest)
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
                f"{folder / MANIFEST} to prepare the dataset again"
            )
        arrays.append(torch.from_numpy(np.load(path)).to(device))
    return arrays[0], arrays[1]


def _take(data: LabelledImages, indices: np.ndarray) -> LabelledImages:
    return LabelledImages(data.images[indices], data.labels[indices])


def _entry(data: LabelledImages) -> dict[str, Any]:
    digests = {name: hashlib.sha256(_npy(array)) for name, array in data._asdict().items()}
    return {"images": len(data.labels)} | {
        f"{name}_sha256": digest.hexdigest() for name, digest in digests.items()
    }


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _refuse_others(folder: Path, splits: Mapping[str, Any], where: str) -> None:
    """Refuse to overwrite prepared images with others, under an identity that runs have used."""
    if (folder / PROGRESS).is_file():
        before = read_object(folder / PROGRESS, ("splits",))["splits"]
        changed = [split for split in SPLITS if before.get(split) != splits[split]]
        if changed:
            images = f"images or labels ({', '.join(changed)})"
            raise UserError(source_changed(where, images, folder))


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
                f"({first_line(error)}); expected cifar-10-batches-py there"
            ) from error
        labels = np.array(part.targets, dtype=np.int64)
        parts.append(LabelledImages(part.data.transpose(0, 3, 1, 2).copy(), labels))
    return parts[0], parts[1]


def _parquet(path: Path, source: Mapping[str, Any], where: str) -> LabelledImages:
    import pyarrow.parquet
    from PIL import Image

    if not path.is_file():
        raise UserError(f"{where}.source.path: '{path}' does not exist")
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{where}.source.path: '{path}' is not a whole Parquet file "
                        f"({first_line(error)})") from None  # fmt: skip
    if len(table) == 0:
        raise UserError(f"{where}.source.path: '{path}' has no rows, expected images")
    for key in ("image_column", "label_column"):
        if source[key] not in table.column_names:
            raise UserError(
                f"{where}.source.{key}: found '{source[key]}', expected one of "
                f"{table.column_names} ({path.name})"
            )
    labels = _labels(table.column(source["label_column"]), path, source, where)
    decoded: list[np.ndarray] = []
    for index, row in enumerate(table.column(source["image_column"]).to_pylist()):
        place = f"{where}.source.image_column: row {index} of '{path}'"
        encoded = row.get("bytes") if isinstance(row, dict) else None
        if not isinstance(encoded, bytes):
            raise UserError(f"{place} holds {row!r:.40}, expected a struct whose 'bytes' are those "
                            "of an image file")  # fmt: skip
        try:
            decoded.append(np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))
        except Exception as error:  # each format of Pillow has its own ones
            raise UserError(f"{place} is no image ({first_line(error)})") from None
        if decoded[-1].shape != decoded[0].shape:
            raise UserError(f"{place} has {_pixels(decoded[-1])} pixels, expected "
                            f"{_pixels(decoded[0])} as row 0 has")  # fmt: skip
    return LabelledImages(np.stack(decoded).transpose(0, 3, 1, 2).copy(), labels)


def _labels(column: Any, path: Path, source: Mapping[str, Any], where: str) -> np.ndarray:
    import pyarrow

    key = f"{where}.source.label_column: '{source['label_column']}'"
    if not pyarrow.types.is_integer(column.type):
        raise UserError(f"{key} of '{path}' has type {column.type}, expected integers from 0")
    labels = column.to_pylist()
    for index, label in enumerate(labels):
        if label is None or label < 0:
            raise UserError(f"{key} of row {index} of '{path}' holds {label}, expected an integer "
                            "from 0")  # fmt: skip
    return np.array(labels, dtype=np.int64)


def _check_test(train: LabelledImages, test: LabelledImages, where: str) -> None:
    """Refuse test images that a model of the training images could not take."""
    sizes = [_pixels(part.images[0].transpose(1, 2, 0)) for part in (train, test)]
    if sizes[0] != sizes[1]:
        raise UserError(f"{where}.source: test images have {sizes[1]} pixels, expected {sizes[0]} "
                        "as training images have")  # fmt: skip
    if test.labels.max() > train.labels.max():
        raise UserError(f"{where}.source: found test label {test.labels.max()}, expected at most "
                        f"{train.labels.max()}, the largest of training")  # fmt: skip


def _pixels(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
