"""Folders that `transformers` loads: a decoder of the harness written as one, and read from one."""

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from harness.config.decoder_schema import DecoderSpec
from harness.data.tokenizers import END_OF_TEXT
from harness.errors import UserError
from harness.files import new_folder, write_json
from harness.interchange.read_config import read_config
from harness.interchange.weights import adopt, publish
from harness.interchange.write_config import without_unknown_modules, write_config
from harness.models.decoder import Decoder

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def export_folder(
    model: Decoder,
    folder: Path,
    *,
    max_position_embeddings: int,
    tokenizer_file: Path | None = None,
    where: str = "model",
    max_shard_size: int | str = "5GB",
) -> None:
    """Write ``model`` as a folder of Hugging Face, which appears whole or not at all.

    Args:
        model: The decoder.
        folder: Where to write; must not exist or be empty.
        max_position_embeddings: Longest sequence that the model was trained on.
        tokenizer_file: A `tokenizer.json` with ``<|endoftext|>``, which ends and starts texts.
        where: Start of messages about the model.
        max_shard_size: Larger weights are split into several files.

    Raises:
        UserError: If ``folder`` has something in it or no published architecture computes what
            ``model`` does.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    spec = without_unknown_modules(model.spec)
    config = write_config(spec, len(state["embedding.weight"]), where)
    end = None if tokenizer_file is None else _end_of_text(tokenizer_file)
    config |= {
        "max_position_embeddings": max_position_embeddings,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": str(state["embedding.weight"].dtype).removeprefix("torch."),
    }
    with new_folder(folder) as partial:
        write_json(partial / "config.json", config)
        save_torch_state_dict(publish(spec, state), partial, max_shard_size=max_shard_size)
        if tokenizer_file is not None:
            shutil.copyfile(tokenizer_file, partial / "tokenizer.json")
            write_json(partial / "tokenizer_config.json", _tokenizer(max_position_embeddings))


def import_folder(folder: Path) -> tuple[DecoderSpec, dict[str, Tensor]]:
    """Return the specification and the state of the decoder that a folder of Hugging Face holds.

    The tensors keep the types in which they are stored.

    Raises:
        UserError: If a file is missing or broken, or the architecture, one of its options or a
            tensor is not one that a decoder of the harness has.
    """
    config = _read_json(folder / "config.json")
    published = _load_weights(folder)
    spec = read_config(config, published.keys(), str(folder / "config.json"))
    return spec, adopt(spec, published, str(folder))


def _end_of_text(tokenizer_file: Path) -> int:
    end = Tokenizer.from_file(str(tokenizer_file)).token_to_id(END_OF_TEXT)
    assert end is not None, "every tokenizer of the project has it"
    return end


def _tokenizer(max_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a folder of Hugging Face")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {type(content).__name__}, expected an object")
    return content


def _load_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of `model.safetensors`, or of the shards that its index lists."""
    if (folder / INDEX).is_file():
        files = sorted(set(_read_json(folder / INDEX)["weight_map"].values()))
    else:
        files = [WEIGHTS]
    tensors: dict[str, Tensor] = {}
    for name in files:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file; expected weights in safetensors")
        try:
            tensors |= load_file(folder / name)
        except SafetensorError as error:
            raise UserError(f"{folder / name}: not a whole safetensors file: {error}") from None
    return tensors
