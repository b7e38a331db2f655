"""Log-likelihoods of continuations, with the output head applied only where something is asked.

Shape suffixes: G starts, B rows, S positions of the starts, T positions behind them, D hidden
size, P places asked about, A answers, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.evaluation.scoring_plan import Batch, Request
from harness.models.cache import Cache
from harness.models.decoder import Decoder

# Logits that exist at the same time: 256 MiB of float32.
LOGITS_AT_ONCE = 1 << 26


@torch.inference_mode()
def score_batch(
    model: Decoder, batch: Batch, requests: Sequence[Request]
) -> dict[int, tuple[float, bool]]:
    """Return the log-likelihood in nats of each request's targets, and if all are the likeliest.

    Args:
        model: In evaluation mode.
        batch: Of ``plan_passes``.
        requests: All of the plan.

    Returns:
        Answers by the index of the request.
    """
    features_BTD = _features(model, batch)
    members = [index for row in batch.rows for index in row.requests]
    asked = _asked(batch, requests)
    places = list(asked)
    owners: list[int] = []
    answers: list[Tensor] = []
    size = max(1, LOGITS_AT_ONCE // model.head.out_features)
    for start in range(0, len(places), size):
        part = places[start : start + size]
        rows_P, positions_P = torch.tensor(part, device=features_BTD.device).unbind(1)
        logits_PV = model.head(features_BTD[rows_P, positions_P]).float()
        wanted = [(p, *pair) for p, place in enumerate(part) for pair in asked[place]]
        owners += [owner for _, _, owner in wanted]
        answers.append(_answers(logits_PV, [(p, target) for p, target, _ in wanted]))
    # Summed here in float64, in one order whatever the device.
    value_A, likeliest_A = torch.cat(answers, dim=1).cpu().numpy()
    values = np.bincount(owners, weights=value_A)
    missed = np.bincount(owners, weights=1 - likeliest_A)
    return {
        index: (float(value), bool(misses == 0))
        for index, value, misses in zip(members, values, missed, strict=True)
    }


def _features(model: Decoder, batch: Batch) -> Tensor:
    """Return the states (B x T x D) of all rows from the end of the shared starts on."""
    device = model.embedding.weight.device
    shared = batch.shared
    rows_BT = pad([row.inputs[shared:] for row in batch.rows], device)
    if not shared:
        return model.features(rows_BT)
    starts_GS = pad([group[0].inputs[:shared] for group in batch.groups], device)
    # Latents are expanded to keys and values: for many positions at once that is less work.
    starts = model.new_cache(len(starts_GS), shared, form="naive")
    model.features(starts_GS, starts)
    cache = model.new_cache(len(rows_BT), shared + rows_BT.shape[1], form="naive")
    _repeat(starts, cache, torch.tensor([len(group) for group in batch.groups], device=device))
    return model.features(rows_BT, cache)


def _repeat(starts: Cache, cache: Cache, times_G: Tensor) -> None:
    """Fill ``cache`` with each sequence of ``starts`` as often as ``times_G`` says."""
    for source, layer in zip(starts.layers, cache.layers, strict=True):
        for name, memory in source.items():
            layer[name][:, :, : starts.length] = memory.repeat_interleave(times_G, dim=0)
    cache.length = starts.length


def _asked(
    batch: Batch, requests: Sequence[Request]
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Return targets, and the member that asks for each, by row and position behind the start."""
    asked: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    member = 0
    for place, row in enumerate(batch.rows):
        for index in row.requests:
            first = requests[index].first - batch.shared
            for position, target in enumerate(requests[index].targets, first):
                asked[place, position].append((target, member))
            member += 1
    return asked


def _answers(logits_PV: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return log-probabilities of places' targets and if they are the likeliest (2 x A)."""
    places_A, targets_A = torch.tensor(pairs, device=logits_PV.device).unbind(1)
    chosen_A = logits_PV.log_softmax(-1)[places_A, targets_A]
    likeliest_A = logits_PV.argmax(-1)[places_A] == targets_A
    return torch.stack([chosen_A.double(), likeliest_A.double()])


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return rows (B x T) padded on the right, where causal attention never looks."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
