"""Tokenising on all cores, in order and in bounded memory.

``tokenizers`` spreads a batch over its threads (all cores; RAYON_NUM_THREADS says fewer) without
Python's lock, so that reading and writing go on meanwhile.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from tokenizers import Encoding, Tokenizer

from harness.data.tokenizers import END_OF_TEXT

# An encoding takes about a hundred times the memory of its text.
BATCH_BYTES = 1 << 20
# Batches beyond the one that is being encoded.
LOOKAHEAD = 1

Batch = TypeVar("Batch")


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """Return the smallest type of the two that shards have which holds every token."""
    return np.dtype(np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32)


def encode_in_order(
    tokenizer: Tokenizer, batches: Iterable[Batch], texts: Callable[[Batch], list[str]]
) -> Iterator[tuple[Batch, list[np.ndarray]]]:
    """Yield every batch with the tokens of its texts, each closed by the end-of-text token.

    At most ``LOOKAHEAD + 2`` batches are held.

    Args:
        tokenizer: Of the dataset. Special tokens that a text spells out are encoded as text, so
            that only a document's end is encoded as its end.
        batches: Read as they are needed.
        texts: Returns the texts of a batch.
    """
    tokenizer.encode_special_tokens = True
    end, dtype = tokenizer.token_to_id(END_OF_TEXT), token_dtype(tokenizer)
    waiting: deque[tuple[Batch, Future[list[Encoding]]]] = deque()

    def first() -> tuple[Batch, list[np.ndarray]]:
        batch, encodings = waiting.popleft()
        tokens = [np.array([*one.ids, end], dtype=dtype) for one in encodings.result()]
        return batch, tokens

    with ThreadPoolExecutor(max_workers=1) as pool:
        for batch in batches:
            future: Future[Any] = pool.submit(
                tokenizer.encode_batch_fast, texts(batch), add_special_tokens=False
            )
            waiting.append((batch, future))
            if len(waiting) > LOOKAHEAD:
                yield first()
        while waiting:
            yield first()
