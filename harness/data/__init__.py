"""Text and image sources, prepared once into digest-checked files that every run maps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def prepare(spec: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Prepare the dataset of a resolved specification in ``folder`` and return its manifest.

    Raises:
        UserError: If its source is missing.
    """
    if spec["kind"] == "text":
        from harness.data.text import prepare_text

        return prepare_text(spec, folder, where)
    from harness.data.images import prepare_images

    return prepare_images(spec, folder, where)
