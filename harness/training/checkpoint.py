"""Checkpoints that are whole or not there, and the digest of final weights."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.errors import UserError
from harness.files import read_json, sha256_of, write_atomically, write_json


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write ``state`` as the checkpoint of ``step`` and drop the older one.

    The small pointer file is replaced last, so a kill at any moment, or a disk that is full, leaves
    a whole checkpoint.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    path = folder / f"step-{step}.pt"
    try:
        write_atomically(path, buffer.getvalue())
        write_json(folder / "latest.json", {"step": step, "sha256": sha256_of(path)})
    finally:
        # Of this write if it failed, and of earlier ones that were killed: they are large.
        for partial in folder.glob("*.partial*"):
            partial.unlink()
    for old in folder.glob("step-*.pt"):
        if old != path:
            old.unlink()


def load_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """Return the last saved state, or None if there is none.

    Raises:
        UserError: If the checkpoint is missing, damaged or differs from its digest.
    """
    pointer = folder / "latest.json"
    if not pointer.is_file():
        return None
    latest = read_json(pointer)
    path = folder / f"step-{latest['step']}.pt"
    if not path.is_file() or sha256_of(path) != latest["sha256"]:
        state = "differs from its digest" if path.is_file() else "is missing"
        raise UserError(
            f"{path}: checkpoint {state} (expected sha256 {latest['sha256'][:12]}...); delete "
            f"{folder} to start this run again from step 0"
        )
    return torch.load(path, map_location=device, weights_only=True)


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a digest of names, shapes, types and values of a model's state."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
