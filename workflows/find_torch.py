"""Print what keeps an installed torch 2.11 or later and its torchvision; nothing if none.

Without arguments, constraints for pip; with ``--path``, the folder that holds torch. A virtual
environment made from another one sees the system's packages but not those of the other.
"""

import sys
from importlib import metadata

OLDEST = (2, 11)


def constraints() -> list[str]:
    """Return one ``name==version`` per package that is to be kept."""
    versions = {}
    for name in ("torch", "torchvision"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            break
    if "torch" in versions and tuple(map(int, versions["torch"].split(".")[:2])) < OLDEST:
        return []
    return [f"{name}=={version}" for name, version in versions.items()]


def main() -> None:
    """Print constraints, or the folder if asked for."""
    if sys.argv[1:] == ["--path"]:
        print(metadata.distribution("torch").locate_file(""))
    else:
        print(*constraints(), sep="\n", end="")


if __name__ == "__main__":
    main()
