"""Models without memory, to count what they would allocate."""

from functools import cache

import torch

from harness.config.decoder_schema import DecoderSpec
from harness.models import build_model
from harness.models.decoder import Decoder


@cache
def on_meta(spec: DecoderSpec) -> Decoder:
    """Return the decoder of ``spec`` on torch's meta device, without multi-token prediction."""
    with torch.device("meta"):
        model = build_model(spec.model_copy(update={"prediction": None}))
    assert isinstance(model, Decoder)
    return model
