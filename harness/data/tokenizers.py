"""Every tokenizer of the project is a ``tokenizers.Tokenizer`` with ``<|endoftext|>``."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from harness.data.locations import hub_copy, locate
from harness.errors import UserError, first_line

END_OF_TEXT = "<|endoftext|>"

Part = TypeVar("Part")


def make_tokenizer(spec: Mapping[str, Any], texts: Iterable[str], where: str) -> Tokenizer:
    """Return the tokenizer of ``spec``; only a BPE that is to be trained reads ``texts``.

    Raises:
        UserError: If the tokenizer's files are missing or are not those of a tokenizer.
    """
    if spec["type"] == "bytes":
        return _byte_level(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    if spec["type"] == "bpe":
        return _train_bpe(spec["vocab_size"], texts)
    if spec["type"] == "tokenizer_file":
        path = locate(spec["path"], f"{where}.tokenizer.path")
        found = f"{where}.tokenizer.path: '{path}'"
        expected = "the tokenizer.json of `tokenizers`; for vocab.json and merges.txt: gpt2_files"
        return _with_end_of_text(_read(lambda: Tokenizer.from_file(str(path)), found, expected))
    if spec["type"] == "gpt2_files":
        vocabulary = locate(spec["vocabulary"], f"{where}.tokenizer.vocabulary")
        merges = locate(spec["merges"], f"{where}.tokenizer.merges")
        found = f"{where}.tokenizer: '{vocabulary}' with '{merges}'"
        expected = "vocab.json and merges.txt of one tokenizer"
        return _byte_level(
            _read(lambda: models.BPE.from_file(str(vocabulary), str(merges)), found, expected)
        )
    return _from_hub(spec["path"], where)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer that was saved with a prepared dataset.

    Raises:
        UserError: If it is missing or damaged.
    """
    path = folder / "tokenizer.json"
    expected = f"what was written there; delete {folder / 'manifest.json'} to prepare it again"
    return _read(lambda: Tokenizer.from_file(str(path)), str(path), expected)


def _read(read: Callable[[], Part], found: str, expected: str) -> Part:
    try:
        return read()
    except Exception as error:  # the Rust library raises bare exceptions
        raise UserError(
            f"{found}: cannot be loaded ({first_line(error)}); expected {expected}"
        ) from None


def _byte_vocabulary() -> dict[str, int]:
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {symbol: index for index, symbol in enumerate(symbols)}


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _from_hub(path: str, where: str) -> Tokenizer:
    """Return the tokenizer of the copy below ``HARNESS_DATA`` if there is one, else the hub's."""
    copy = hub_copy(path)
    file = None if copy is None else copy / "tokenizer.json"
    try:
        if file is not None and file.is_file():
            return _with_end_of_text(Tokenizer.from_file(str(file)))
        return _with_end_of_text(Tokenizer.from_pretrained(path))
    except Exception as error:  # the Rust library raises bare exceptions
        raise UserError(
            f"{where}.tokenizer.path: '{path}' cannot be loaded ({first_line(error)}) from "
            f"{file or 'the hub, and HARNESS_DATA is not set'}; expected network access or a copy: "
            f'hf download {path} tokenizer.json --local-dir "$HARNESS_DATA/{path}"'
        ) from error


def _with_end_of_text(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer
