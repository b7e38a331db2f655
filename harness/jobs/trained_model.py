"""Decoders that runs have trained."""

from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from harness.config.base import validate
from harness.config.decoder_schema import DecoderSpec
from harness.errors import UserError
from harness.models.decoder import Decoder
from harness.records.run_folder import RunFolder
from harness.training.checkpoint import weights_sha256


def load_trained(folder: RunFolder, summary: dict[str, Any]) -> Decoder:
    """Return the decoder of a completed run.

    Args:
        folder: Of the run.
        summary: Of the run.

    Raises:
        UserError: If its weights are missing, damaged or not those that training ended with.
    """
    if not folder.weights.is_file():
        raise UserError(f"{folder.weights}: no such file; expected the weights of a completed run; "
                        "runs that only tune a learning rate do not keep theirs")  # fmt: skip
    try:
        state = load_file(folder.weights)
    except SafetensorError as error:
        raise UserError(
            f"{folder.weights}: found no whole weights ({error}), expected those that training "
            f"ended with; delete {folder.path} to train this run again"
        ) from None
    if weights_sha256(state) != summary["weights_sha256"]:
        raise UserError(f"{folder.weights}: weights differ from the digest in summary.json; delete "
                        f"{folder.path} to train this run again")  # fmt: skip
    spec = validate(DecoderSpec, summary["spec"]["model"], "model")
    model = Decoder(spec, len(state["embedding.weight"]))
    model.load_state_dict(state)
    return model
