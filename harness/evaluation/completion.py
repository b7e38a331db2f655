"""Greedy continuation of texts of different lengths until each has what ends it.

Shape suffixes: B rows, T positions, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from harness.evaluation.scoring import pad
from harness.models.cache import Cache
from harness.models.decoder import Decoder


def similar_lengths(
    lengths: Sequence[int], new_tokens: int, batch_size: int
) -> Iterator[list[int]]:
    """Yield indices in batches of similar lengths, the longest first.

    A batch takes as many passes as it has new tokens and its lengths differ: it is parted where
    two neighbours differ by more than the passes that another batch takes.

    Args:
        lengths: Of the contexts.
        new_tokens: After each context.
        batch_size: Most rows of a batch.
    """
    part: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        full = len(part) == batch_size
        if part and (full or lengths[part[-1]] - lengths[index] > new_tokens):
            yield part
            part = []
        part.append(index)
    if part:
        yield part


@torch.inference_mode()
def complete_greedily(
    model: Decoder,
    contexts: Sequence[Sequence[int]],
    new_tokens: int,
    finished: Callable[[list[int]], bool],
) -> list[list[int]]:
    """Return the likeliest tokens after each context, at most ``new_tokens``.

    All contexts are read in one pass, padded on the right: what the padding leaves in the cache is
    overwritten before anything reads it. Rows then go on from where their contexts end, those at
    the same position together, so that shorter ones start first.

    Args:
        model: In evaluation mode.
        contexts: Of one token or more each.
        new_tokens: After each context.
        finished: Whether tokens after a context, so far, are enough.
    """
    order = sorted(range(len(contexts)), key=lambda index: len(contexts[index]))
    lengths = [len(contexts[index]) for index in order]
    cache = model.new_cache(len(order), lengths[-1] + new_tokens)
    inputs_BT = pad([contexts[index] for index in order], model.embedding.weight.device)
    states_BTD = model.features(inputs_BT, cache)
    ends = torch.tensor(lengths, device=inputs_BT.device) - 1
    tokens = model.head(states_BTD[torch.arange(len(order)), ends]).argmax(-1).tolist()
    made = [[token] for token in tokens]

    def going(row: int) -> bool:
        return len(made[row]) < new_tokens and not finished(made[row])

    open_rows = [row for row in range(len(order)) if going(row)]
    position = 0
    while open_rows:
        position = max(position, lengths[open_rows[0]])
        started = [row for row in open_rows if lengths[row] <= position]
        # Rows between them that have ended are computed too, and ignored.
        window = slice(started[0], started[-1] + 1)
        inputs_B1 = torch.tensor([row[-1:] for row in made[window]], device=inputs_BT.device)
        states_B1D = model.features(inputs_B1, _part(cache, window, position))
        tokens = model.head(states_B1D[:, -1]).argmax(-1).tolist()
        for row in started:
            made[row].append(tokens[row - window.start])
        open_rows = [row for row in open_rows if row not in started or going(row)]
        position += 1
    return [made[order.index(index)] for index in range(len(order))]


def _part(cache: Cache, rows: slice, length: int) -> Cache:
    """Return some rows of a cache up to a position; what is added is added to ``cache``."""
    layers = [{name: memory[rows] for name, memory in layer.items()} for layer in cache.layers]
    return Cache(layers, cache.capacity, length)
