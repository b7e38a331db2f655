"""The wheels that another machine lacks, at the versions of ``constraints.txt``."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.errors import UserError, closest

# Builds the project itself on the other machine.
BUILD = "setuptools>=77"
_PLATFORM = re.compile(r"manylinux_2_(\d+)_(\w+)")
# Names of a platform before it was named by its C library (PEP 600), by minor version.
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


def missing_packages(root: Path, without: Sequence[str], python: str) -> list[str]:
    """Return the pins of what the project needs on a machine that has ``without``.

    The requirements of what the machine has are not followed: it has them too.

    Args:
        root: The checkout, with ``pyproject.toml`` and ``constraints.txt``.
        without: Packages of the other machine.
        python: Its Python, e.g. ``3.12``.

    Raises:
        UserError: If a name is not in ``constraints.txt`` or torch is not among them, or
            ``python`` is no version.
    """
    if re.fullmatch(r"[0-9]+\.[0-9]+", python) is None:
        raise UserError(f"--python: found '{python}', expected e.g. 3.12")
    lines = (root / "constraints.txt").read_text().splitlines()
    pins: dict[str, str] = {
        canonicalize_name(line.partition("==")[0]): line for line in lines if "==" in line
    }
    for name in without:
        if canonicalize_name(name) not in pins:
            raise UserError(f"--without: found '{name}', not in constraints.txt"
                            f"{closest(canonicalize_name(name), pins)}")  # fmt: skip
    if "torch" not in without:
        raise UserError("--without: expected torch among the names; it and its GPU libraries are "
                        "gigabytes that belong to the machine's driver")  # fmt: skip
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    had: set[str] = {canonicalize_name(name) for name in without}
    return [pins[name] for name in _reachable(project["dependencies"], had, python) if name in pins]


def _reachable(roots: Iterable[str], had: set[str], python: str) -> list[str]:
    """Return the names of all that ``roots`` require, following nothing of ``had``."""
    waiting = list(_needed(roots, "", python))
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if name in had or (name, extra) in seen:
            continue
        seen.add((name, extra))
        waiting += _needed(_requirements(name), extra, python)
    return sorted({name for name, _ in seen})


def _requirements(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []  # for another system: pip says what it lacks


def _needed(requirements: Iterable[str], extra: str, python: str) -> Iterator[tuple[str, str]]:
    """Yield name and extra of the requirements that hold for ``extra`` under ``python``."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            for its_extra in ("", *requirement.extras):
                yield canonicalize_name(requirement.name), its_extra


def compatible_platforms(platform: str) -> list[str]:
    """Return the platforms whose wheels run on ``platform``, the newest first (PEP 600).

    Raises:
        UserError: If it is not of the form ``manylinux_2_28_x86_64``.
    """
    match = _PLATFORM.fullmatch(platform)
    if match is None:
        raise UserError(f"--platform: found '{platform}', expected e.g. manylinux_2_28_x86_64")
    names = []
    for minor in range(int(match[1]), 4, -1):
        names.append(f"manylinux_2_{minor}_{match[2]}")
        if minor in _LEGACY:
            names.append(f"{_LEGACY[minor]}_{match[2]}")
    return [*names, f"linux_{match[2]}"]


def download_wheels(requirements: Sequence[str], folder: Path, python: str, platform: str) -> None:
    """Put a wheel of every requirement into ``folder``, as pip is configured to find them.

    Raises:
        UserError: If one cannot be had for this Python and platform.
    """
    options = [f"--platform={name}" for name in compatible_platforms(platform)]
    _pip("download", "--no-deps", f"--python-version={python}", *options,
         f"--dest={folder}", *requirements)  # fmt: skip
    for source in [path for path in sorted(folder.iterdir()) if path.suffix != ".whl"]:
        before = set(folder.iterdir())
        _pip("wheel", "--no-deps", f"--wheel-dir={folder}", str(source))
        [wheel] = set(folder.iterdir()) - before
        if not wheel.name.endswith("-none-any.whl"):
            raise UserError(f"{source.name}: has no wheel for {platform}, and one that is built "
                            "here runs only on machines like this one")  # fmt: skip
        source.unlink()


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines()]
        errors = [line[7:] for line in lines if line.lower().startswith("error: ")]
        # pip has its own errors last; before them are those of what built a package.
        reasons = errors or lines[-1:] or ["no reason given"]
        raise UserError(f"pip {arguments[0]}: {'; '.join(dict.fromkeys(reasons))}")
