"""What the command `harness bundle` does."""

import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.bundle import unbundle
from harness.bundle.parts import write_parts
from harness.bundle.wheels import BUILD, download_wheels, missing_packages
from harness.errors import UserError, closest
from harness.files import new_folder, write_json

_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
# Notes on what this machine has verified or how far it was.
_LEFT = ("verified.json", "progress.json")


def write_bundle(
    output: Path,
    *,
    root: Path,
    results: Path,
    data: Sequence[str],
    python: str,
    platform: str,
    part_size: str,
    without: Sequence[str],
) -> list[str]:
    """Write the checkout's commit, prepared data and wheels as parts into ``output``.

    Args:
        output: New or empty folder.
        root: The checkout, under git.
        results: Holds the prepared data.
        data: Names of prepared datasets, or of their folders in ``results/data``.
        python: Of the other machine, e.g. ``3.12``.
        platform: Of the other machine, e.g. ``manylinux_2_28_x86_64``.
        part_size: Largest size of a part, e.g. ``60MiB``.
        without: Packages that the other machine has.

    Returns:
        Lines for the user.

    Raises:
        UserError: For a bad option, data that was not prepared, or wheels that cannot be had.
    """
    size = parse_size(part_size)
    folders = [prepared_folder(results / "data", name) for name in data]
    pins = missing_packages(root, without, python)
    with new_folder(output) as partial, TemporaryDirectory() as temporary:
        staging = Path(temporary)
        commit = archive_checkout(root, staging)
        wheels = staging / unbundle.WHEELS
        wheels.mkdir()
        download_wheels([*pins, BUILD], wheels, python, platform)
        content = write_parts(_files(staging, folders), partial, size)
        manifest = {"commit": commit, "python": python, "platform": platform,
                    "without": list(without)}  # fmt: skip
        write_json(partial / unbundle.MANIFEST, manifest | content)
        shutil.copyfile(unbundle.__file__, partial / "unbundle.py")
    total = sum(part["size"] for part in content["parts"])
    changed = _git(root, "status", "--porcelain").splitlines()
    lines = [f"wrote {output}: {len(content['parts'])} parts, {total / 1e6:.0f} MB: commit "
             f"{commit[:12]}, {len(pins) + 1} wheels, {len(folders)} datasets"]  # fmt: skip
    if changed:
        lines.append(f"not in it: {len(changed)} files with changes that are not committed")
    return [*lines, "carry all files of the folder to the other machine; there: python unbundle.py "
            "--output FOLDER"]  # fmt: skip


def _files(staging: Path, folders: Sequence[Path]) -> dict[str, Path]:
    """Return the source of every file by its path in the bundle."""
    archive = f"{unbundle.CHECKOUT}.tar"
    files = {archive: staging / archive}
    wheels = sorted((staging / unbundle.WHEELS).iterdir())
    files |= {f"{unbundle.WHEELS}/{path.name}": path for path in wheels}
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            if path.name not in _LEFT and path.suffix not in (".log", ".lock"):
                files[f"data/{folder.name}/{path.relative_to(folder).as_posix()}"] = path
    return files


def parse_size(text: str) -> int:
    """Return the bytes of a size like ``60MiB``.

    Raises:
        UserError: If it is none.
    """
    match = re.fullmatch(r"(\d+) ?([A-Za-z]+)", text)
    if match is None or match[2] not in _UNITS or int(match[1]) == 0:
        raise UserError(f"--part-size: found '{text}', expected e.g. 60MiB (units: "
                        f"{', '.join(_UNITS)})")  # fmt: skip
    return int(match[1]) * _UNITS[match[2]]


def prepared_folder(data: Path, name: str) -> Path:
    """Return the folder in ``data`` of this name, or the only one of the dataset of this name.

    Raises:
        UserError: If there is none or there are several.
    """
    known = sorted(path.parent.name for path in data.glob("*/manifest.json"))
    datasets = {folder: re.sub("-[0-9a-f]{12}$", "", folder) for folder in known}
    found = [folder for folder in known if name in (folder, datasets[folder])]
    if not found:
        hint = "; expected datasets that snakemake has prepared"
        if known:
            hint = closest(name, {*known, *datasets.values()})
        raise UserError(f"--data: found no '{name}' in {data}{hint}")
    if len(found) > 1:
        raise UserError(f"--data: found several of '{name}', expected one of {', '.join(found)}")
    return data / found[0]


def archive_checkout(root: Path, staging: Path) -> str:
    """Write ``checkout.tar`` with files and history of the commit of ``root``, and return it.

    Raises:
        UserError: If ``root`` is not under git.
    """
    commit = _git(root, "rev-parse", "HEAD")
    clone = staging / unbundle.CHECKOUT
    # Templates would bring this machine's hooks along, remote and log its paths.
    options = ("--quiet", "--template=", "--no-hardlinks", "--single-branch")
    _git(root, "clone", *options, str(root), str(clone))
    _git(clone, "remote", "remove", "origin")
    shutil.rmtree(clone / ".git" / "logs")
    with tarfile.open(staging / f"{unbundle.CHECKOUT}.tar", "w") as tar:
        tar.add(clone, arcname=".", filter=_without_owner)
    return commit


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UserError("git: not found; expected it, to bundle a commit") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"{folder}: git {arguments[0]} failed: {error.stderr.strip()}") from None
    return result.stdout.strip()
