"""Where data of the user lies: absolute paths, or paths below the folder of ``HARNESS_DATA``."""

import os
from pathlib import Path

from harness.errors import UserError


def locate(path: str, where: str, *, create: bool = False) -> Path:
    """Return ``path`` if absolute, else below the folder named by ``HARNESS_DATA``.

    Args:
        path: As written in the configuration.
        where: File and key of ``path`` for the message.
        create: Make the folder if it is not there, for data that is about to be downloaded.

    Raises:
        UserError: If ``HARNESS_DATA`` is needed but not set, or the place does not exist or
            cannot be made.
    """
    full = _expand(path, where)
    if not full.is_absolute():
        root = os.environ.get("HARNESS_DATA")
        if not root:
            raise UserError(
                f"{where}: found relative path '{path}', but HARNESS_DATA is not set; "
                "expected: export HARNESS_DATA=/folder/that/holds/it"
            )
        full = _expand(root, "HARNESS_DATA") / path
    try:
        if create:
            full.mkdir(parents=True, exist_ok=True)
        exists = full.exists()
    except OSError as error:
        use = "made a folder" if create else "read"
        raise UserError(f"{where}: '{full}' cannot be {use} ({error.strerror})") from None
    if not exists:
        raise UserError(f"{where}: '{full}' does not exist; expected the data there")
    return full


def hub_copy(repository: str) -> Path | None:
    """Return where a copy of a repository of the Hugging Face hub belongs, if anywhere.

    Args:
        repository: Its path on the hub; the copy's path below the folder of ``HARNESS_DATA``.
    """
    root = os.environ.get("HARNESS_DATA")
    return _expand(root, "HARNESS_DATA") / repository if root else None


def _expand(path: str, where: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise UserError(f"{where}: found '{path}', expected a path; '{user}' is the home of no "
                        "user here") from None  # fmt: skip
