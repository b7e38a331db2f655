"""Evaluation tasks made from held-out text, in lm-eval's own format and without any download."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError
from harness.files import write_atomically

CONTINUATION, BITS_PER_BYTE = "heldout_continuation", "heldout_bits_per_byte"
COMPLETION = "heldout_completion"
HELDOUT_TASKS = (CONTINUATION, BITS_PER_BYTE, COMPLETION)
CONTEXT_CHARACTERS = 160
CONTINUATION_CHARACTERS = 48
CHOICES = 4
DOCUMENT_CHARACTERS = 2000
VERSION = 1


def write_heldout_tasks(documents: Sequence[str], folder: Path, seed: int, count: int) -> None:
    """Write the embedded tasks to ``folder``; the same input gives the same bytes.

    ``heldout_continuation``: which of four continuations follows the context; three come from other
    places of the held-out text. ``heldout_bits_per_byte``: the loss on whole pieces of text.
    ``heldout_completion``: the character n-grams (chrF; Popovic, WMT 2015) that a greedy completion
    of the context shares with the true one.

    Args:
        documents: Held-out texts.
        folder: Where YAML and JSONL files go.
        seed: Of the choice of places and of the order of answers.
        count: Questions, and pieces of text.

    Raises:
        UserError: If the documents are too short to cut anything from them.
    """
    generator = random.Random(seed)
    span = CONTEXT_CHARACTERS + CONTINUATION_CHARACTERS
    usable = [text for text in documents if len(text) > 2 * span]
    if len(usable) < CHOICES:
        raise UserError(
            f"{folder}: found {len(usable)} held-out documents of more than {2 * span} characters, "
            f"expected at least {CHOICES}; raise test_fraction in datasets.yaml"
        )
    questions = [_question(usable, generator) for _ in range(count)]
    texts = [text[:DOCUMENT_CHARACTERS] for text in usable]
    generator.shuffle(texts)
    _write(folder, CONTINUATION, questions, _CONTINUATION)
    completions = [
        {"context": asked["context"], "truth": asked["choices"][asked["answer"]]}
        for asked in questions
    ]
    _write(folder, COMPLETION, completions, _COMPLETION)
    _write(folder, BITS_PER_BYTE, [{"text": text} for text in texts[:count]], _BITS_PER_BYTE)


_CONTINUATION: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    # Continuations begin in mid-text: nothing may be put between them and the context.
    "target_delimiter": "",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}
_BITS_PER_BYTE: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
}
_COMPLETION: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{truth}}",
    # At most one token per character; what is longer than the truth is cut off.
    "generation_kwargs": {"until": [], "max_gen_toks": CONTINUATION_CHARACTERS},
    "filter_list": [
        {
            "name": "none",
            "filter": [
                {
                    "function": "regex",
                    "regex_pattern": rf"^([\s\S]{{0,{CONTINUATION_CHARACTERS}}})",
                    "fallback": "",
                },
                {"function": "take_first"},
            ],
        }
    ],
    "metric_list": [{"metric": "chrf"}],
}


def _question(documents: Sequence[str], generator: random.Random) -> dict[str, Any]:
    chosen = generator.sample(range(len(documents)), CHOICES)
    context, truth = _place(documents[chosen[0]], generator)
    choices = [truth] + [_place(documents[index], generator)[1] for index in chosen[1:]]
    order = generator.sample(range(CHOICES), CHOICES)
    return {
        "context": context,
        "choices": [choices[index] for index in order],
        "answer": order.index(0),
    }


def _place(text: str, generator: random.Random) -> tuple[str, str]:
    """Return context and continuation on both sides of a random place of ``text``."""
    place = generator.randrange(CONTEXT_CHARACTERS, len(text) - CONTINUATION_CHARACTERS)
    return text[place - CONTEXT_CHARACTERS : place], text[place : place + CONTINUATION_CHARACTERS]


def _write(folder: Path, name: str, rows: list[dict[str, Any]], task: dict[str, Any]) -> None:
    data = folder / f"{name}.jsonl"
    write_atomically(data, "".join(json.dumps(row) + "\n" for row in rows).encode())
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "metadata": {"version": VERSION},
        **task,
    }
    write_atomically(folder / f"{name}.yaml", yaml.safe_dump(config, sort_keys=True).encode())
