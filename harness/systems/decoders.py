"""Decoders of the configuration whose costs are counted."""

from collections.abc import Mapping
from typing import Any

from harness.config.base import validate
from harness.config.decoder_schema import DecoderSpec
from harness.errors import UserError

Models = dict[str, DecoderSpec]


def decoders_with_vocabulary(models: Mapping[str, Any], where: str) -> Models:
    """Return validated decoders by name.

    Args:
        models: Entries of ``config/models.yaml``.
        where: What is validated, for messages.

    Raises:
        UserError: If one is no decoder, or takes its vocabulary from a dataset.
    """
    specs: Models = {}
    for name, data in models.items():
        key = f"{where}: models: {name}"
        specs[name] = validate(DecoderSpec, data, key)
        if specs[name].vocab_size is None:
            raise UserError(f"{key}.vocab_size: found none, expected the model's own vocabulary")
    return specs
