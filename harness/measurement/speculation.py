"""How often drafts of multi-token prediction are accepted, and what that gains in speed.

If each draft is accepted with probability p, whatever the others, a pass of the main model yields
1 + p + ... + p^D tokens with D drafts (Leviathan et al., arXiv 2211.17192, eq. 1), for the time of
1 + c steps where drafting takes c of a step and verifying no longer than a step:

    speed-up = (1 + p) / (1 + c)    for one draft.

Measured speed says what is left of that: passes over several tokens, caches and launches cost too.
"""

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from harness.errors import UserError
from harness.evaluation.generation import GREEDY, Sampling, generate
from harness.evaluation.speculative import (
    Drafter,
    SpeculativeGeneration,
    generate_speculatively,
)
from harness.measurement.optimizer_step import WARMUP_ROUNDS, timed
from harness.models.decoder import Decoder
from harness.records.record import record

MODES = {"greedy": GREEDY, "sampled": Sampling(temperature=1.0)}
# Steps of one timed sample; a GPU's step is too short to time alone.
STEPS_PER_SAMPLE = 8


def expected_tokens(acceptance: float, depth: int) -> float:
    """Return the tokens of a pass, (1 - p^(D+1)) / (1 - p) for drafts accepted independently.

    Args:
        acceptance: Probability p that a draft is accepted if those before it are.
        depth: Drafts D of each pass.
    """
    return sum(acceptance**place for place in range(depth + 1))


def expected_speedup(acceptance: float, depth: int, overhead: float) -> float:
    """Return the tokens per second over those of plain decoding, tokens of a pass over 1 + c.

    Args:
        acceptance: Probability p that a draft is accepted if those before it are.
        depth: Drafts D of each pass.
        overhead: Time c to draft them, as a share of a main step.
    """
    return expected_tokens(acceptance, depth) / (1 + overhead)


@torch.no_grad()
def measure_speculation(
    model: Decoder, prompts_PT: Tensor, new_tokens: int, rounds: int
) -> list[dict[str, Any]]:
    """Return acceptance, tokens of a pass, draft overhead and speed-up, as records.

    Sequences are decoded one at a time. ``mtp/acceptance`` is the share of drafts at a position
    (1 is the first) that the main model accepts, with those before them; ``mtp/speedup`` compares
    whole greedy generations, their prompts included, and is the median over rounds of the ratio
    within a round; ``mtp/speedup_model`` is the closed form from the first draft's greedy
    acceptance and the measured overhead.

    Args:
        model: In evaluation mode, with prediction modules.
        prompts_PT: Prompts of one length.
        new_tokens: Generated after each prompt.
        rounds: Timed rounds, after untimed ones.

    Raises:
        UserError: If there are too few new tokens for every module to draft.
    """
    assert model.prediction is not None
    depth, device = len(model.prediction), model.embedding.weight.device
    if new_tokens < depth + 2:
        raise UserError(f"speculation: new_tokens: found {new_tokens}, expected at least "
                        f"{depth + 2} for {depth} modules to draft")  # fmt: skip
    prompts = prompts_PT.to(device).split(1)
    records, first = [], {}
    for mode, sampling in MODES.items():
        generator = torch.Generator(device).manual_seed(0)
        results = [
            generate_speculatively(model, prompt, new_tokens, sampling=sampling,
                                   generator=generator)
            for prompt in prompts
        ]  # fmt: skip
        rates = _acceptance(results)
        first[mode] = rates[0]
        records += [
            _record("acceptance", rate, mode=mode, position=place)
            for place, rate in enumerate(rates, 1)
        ]
        passes = sum(result.forwards for result in results)
        records.append(_record("tokens_per_forward", len(results) * new_tokens / passes, mode=mode))
    overhead, speedup = _times(model, prompts, new_tokens, rounds)
    return [
        *records,
        _record("draft_overhead", overhead),
        _record("speedup", speedup),
        _record("speedup_model", expected_speedup(first["greedy"], depth, overhead)),
    ]


def _record(metric: str, value: float, **labels: str | int) -> dict[str, Any]:
    return record(f"mtp/{metric}", value, "1", **labels)


def _acceptance(results: Iterable[SpeculativeGeneration]) -> list[float]:
    drafted = zip(*(result.drafted for result in results), strict=True)
    accepted = zip(*(result.accepted for result in results), strict=True)
    return [sum(a) / sum(d) for a, d in zip(accepted, drafted, strict=True)]


def _times(
    model: Decoder, prompts: Iterable[Tensor], new_tokens: int, rounds: int
) -> tuple[float, float]:
    """Return draft overhead and speed-up, medians over rounds of ratios within a round."""
    device = model.embedding.weight.device
    step, draft = _single_steps(model, next(iter(prompts)), new_tokens)

    def plain() -> None:
        for prompt in prompts:
            generate(model, prompt, new_tokens)

    def speculative() -> None:
        for prompt in prompts:
            generate_speculatively(model, prompt, new_tokens)

    overheads, speedups = [], []
    for round_ in range(-WARMUP_ROUNDS, rounds):
        seconds = [timed(work, device) for work in (step, draft, plain, speculative)]
        if round_ >= 0:
            overheads.append(seconds[1] / seconds[0])
            speedups.append(seconds[2] / seconds[3])
    return median(overheads), median(speedups)


def _single_steps(
    model: Decoder, prompt_1T: Tensor, new_tokens: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return repeated steps of plain decoding and of drafting behind the same full context.

    Drafting is that after a pass that accepted none, the least that modules have to read.
    """
    tokens_1T = torch.cat((prompt_1T, generate(model, prompt_1T, new_tokens)), dim=1)
    past = tokens_1T.shape[1] - 1
    cache = model.new_cache(1, past + 1)
    drafter = Drafter(model, cache, GREEDY, None)
    features_1TD = model.features(tokens_1T[:, :past], cache)
    # The modules read all but one position, then learn that the draft after it was not accepted.
    drafter.observe(features_1TD[:, :-1])
    drafter.draft(tokens_1T[:, :past], len(drafter.modules))
    drafter.observe(features_1TD[:, -1:])
    lengths = list(drafter.lengths)

    def step() -> None:
        for _ in range(STEPS_PER_SAMPLE):
            cache.length = past
            logits_1V = model.head(model.features(tokens_1T[:, past:], cache)[:, -1])
            GREEDY.draw(GREEDY.probabilities(logits_1V), None)

    def draft() -> None:
        for _ in range(STEPS_PER_SAMPLE):
            drafter.lengths = list(lengths)
            drafter.draft(tokens_1T, len(drafter.modules))

    return step, draft
