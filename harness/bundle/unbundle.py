"""Check and unpack a bundle with nothing but Python's standard library.

    python unbundle.py --output FOLDER

The parts are one sequence of bytes, cut where a part was full; the files follow each other in it in
the order of the manifest. Nothing is unpacked before every part has the digest of the manifest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MANIFEST, CHECKOUT, WHEELS = "manifest.json", "checkout", "wheels"
KEYS = {"commit", "python", "without", "parts", "files"}
BLOCK = 1 << 20


class BundleError(Exception):
    """A bundle that is not whole, or a place that it cannot be unpacked to."""


def unbundle(folder: Path, output: Path) -> list[str]:
    """Check the bundle in ``folder``, unpack it to ``output`` and return how to install it.

    Args:
        folder: Holds the manifest and the parts.
        output: New or empty. It appears when everything is in it.

    Returns:
        Lines for the user.

    Raises:
        BundleError: If the manifest or parts are missing or damaged, by their names, or ``output``
            has something in it.
    """
    manifest = _read_manifest(folder)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BundleError(f"{output}: exists; expected a new folder or an empty one")
    _check_parts(folder, manifest["parts"])
    partial = output.with_name(f"{output.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    with tarfile.open(_unpack(folder, manifest, partial), "r:") as tar:
        tar.extractall(partial / CHECKOUT, filter="data")
    (partial / f"{CHECKOUT}.tar").unlink()
    for source in (partial / "data").glob("*"):
        destination = partial / CHECKOUT / "results" / "data" / source.name
        destination.parent.mkdir(parents=True, exist_ok=True)
        source.replace(destination)
    shutil.rmtree(partial / "data", ignore_errors=True)
    partial.replace(output)
    return _instructions(output.resolve(), manifest)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path}: missing; expected a folder that holds a bundle") from None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not manifest.keys() >= KEYS:
        raise BundleError(f"{path}: damaged; copy it again")
    return manifest


def _check_parts(folder: Path, parts: list[dict[str, Any]]) -> None:
    problems = [problem for part in parts if (problem := _problem(folder / part["name"], part))]
    if problems:
        raise BundleError(f"{folder}: {len(problems)} of {len(parts)} parts to copy again: "
                          f"{', '.join(problems)}")  # fmt: skip


def _problem(path: Path, part: dict[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path.name} (missing)"
    size = path.stat().st_size
    if size != part["size"]:
        return f"{path.name} ({size} of {part['size']} bytes)"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return None if digest.hexdigest() == part["sha256"] else f"{path.name} (damaged)"


def _unpack(folder: Path, manifest: dict[str, Any], output: Path) -> Path:
    """Write all files and return the archive of the checkout."""
    blocks = _Blocks(folder, [part["name"] for part in manifest["parts"]])
    for file in manifest["files"]:
        path = output / file["path"]
        if output.resolve() not in path.resolve().parents:
            raise BundleError(f"{folder / MANIFEST}: found a file outside of the bundle, "
                              f"'{file['path']}'")  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("wb") as written:
            for block in blocks.take(file["size"]):
                written.write(block)
                digest.update(block)
        if digest.hexdigest() != file["sha256"]:
            raise BundleError(f"{path}: differs from its digest; unpack the bundle again")
    return output / f"{CHECKOUT}.tar"


class _Blocks:
    """The bytes of all parts, one after the other."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.waiting = [folder / name for name in names]
        self.file: IO[bytes] | None = None

    def take(self, count: int) -> Iterator[bytes]:
        """Yield the next ``count`` bytes."""
        while count > 0:
            if self.file is None:
                self.file = self.waiting.pop(0).open("rb")
            block = self.file.read(min(count, BLOCK))
            if block:
                count -= len(block)
                yield block
            else:
                self.file.close()
                self.file = None


def _instructions(output: Path, manifest: dict[str, Any]) -> list[str]:
    lines = [f"unpacked commit {manifest['commit'][:12]} to {output}"]
    if any(file["path"].startswith(f"{WHEELS}/") for file in manifest["files"]):
        lines += [
            f"the wheels are for Python {manifest['python']} that already has "
            f"{', '.join(manifest['without'])}; to install and run:",
            f"  cd {output / CHECKOUT}",
            f"  python{manifest['python']} -m venv --system-site-packages .venv",
            f"  .venv/bin/python -m pip install --no-index --find-links ../{WHEELS} -e .",
            "  .venv/bin/snakemake --config scale=gpu",
        ]
    return lines


def main() -> int:
    """Unpack the bundle that lies beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    try:
        print(
            "\n".join(unbundle(Path(os.path.abspath(__file__)).parent, parser.parse_args().output))
        )
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
