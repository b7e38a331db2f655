"""Wheels and source archives that tests put into a folder in the place of an index."""

import io
import tarfile
import zipfile
from pathlib import Path


def write_wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any") -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as wheel:
        info = f"{name}-{version}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\n"
                                           f"Version: {version}\n")  # fmt: skip
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\nRoot-Is-Purelib: true\n")
        wheel.writestr(f"{info}/RECORD", "")


def write_source(folder: Path, name: str, version: str, setup: str) -> None:
    folder.mkdir(exist_ok=True)
    files = {
        "setup.py": f"from setuptools import setup\nsetup(name={name!r}, "
                    f"version={version!r}, {setup})",
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    }  # fmt: skip
    with tarfile.open(folder / f"{name}-{version}.tar.gz", "w:gz") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{path}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content.encode()))
