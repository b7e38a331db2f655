"""Self-speculative decoding: a model's prediction modules draft, the model itself verifies.

After the main model has chosen a token, module k of multi-token prediction drafts the k-th token
after it. One pass of the main model over that token and the drafts then says what it would have
chosen at each place. The longest run of drafts that it accepts is kept, and one token of its own.
With speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318) the
tokens have exactly the distribution of plain sampling; greedy decoding is its special case with
all probability on one token, in which a draft is accepted if it is the main model's choice. Equal
in exact arithmetic, that is: a pass over several tokens rounds differently from passes over single
ones, FP8 with scales shared by tokens most of all.

One sequence at a time: sequences of a batch accept different numbers of drafts, and a cache has
one length for all. It is also the case where drafting pays, as a pass over few tokens is bound by
reading the weights.

Shape suffixes: T positions, N new tokens, K drafts, M = K + 1 places to verify, D hidden size,
V vocabulary; 1 is the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.evaluation.generation import GREEDY, Sampling, check_request
from harness.models.cache import Cache, CacheForm
from harness.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class SpeculativeGeneration:
    """Generated tokens and what they took.

    Attributes:
        tokens_1N: The tokens after the prompt.
        forwards: Passes of the main model, that over the prompt included; plain decoding takes one
            for each token.
        drafted: How often a token was drafted, by place after the main model's own.
        accepted: How often it was accepted. A draft is lost with those before it, so these are
            rates of the whole prefix up to that place.
    """

    tokens_1N: Tensor
    forwards: int
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]

    @property
    def tokens_per_forward(self) -> float:
        """New tokens for each pass of the main model."""
        return self.tokens_1N.shape[1] / self.forwards


class Drafter:
    """The prediction modules of a model and what they remember of one sequence.

    Module k at position i reads the state h_i^(k-1) and the token i + k. With the main model's
    states known up to position n - 1 and token n chosen, drafting takes all modules to position
    n - 1, and so to the token n + k - 1, of which those after n are drafts themselves. What was
    read from a draft is forgotten unless the draft is accepted, and the states of depth 0 are
    always the main model's own of final tokens.

    Args:
        model: With prediction modules.
        cache: Of ``model.new_cache`` for one sequence; its last layers are the modules'.
        sampling: How drafts are drawn.
        generator: Source of randomness on the model's device; None: torch's own.
    """

    def __init__(
        self, model: Decoder, cache: Cache, sampling: Sampling, generator: torch.Generator | None
    ) -> None:
        assert model.prediction is not None
        self.model, self.modules = model, list(model.prediction)
        self.sampling, self.generator = sampling, generator
        self.layers = cache.layers[len(model.blocks) :]
        weight = model.embedding.weight
        # By depth, those that a further module reads.
        self.states_1TD = [
            weight.new_empty(1, cache.capacity, weight.shape[1]) for _ in self.modules
        ]
        # Positions known at each depth, the main model's first.
        self.lengths = [0] * (len(self.modules) + 1)

    def observe(self, features_1TD: Tensor) -> None:
        """Take in the main model's features of the positions whose tokens are now final."""
        start = self.lengths[0]
        end = start + features_1TD.shape[1]
        self.states_1TD[0][:, start:end] = features_1TD
        # Depth k at position i has read token i + k, which is final up to end - 1.
        self.lengths = [end] + [
            max(0, min(length, end - depth)) for depth, length in enumerate(self.lengths[1:], 1)
        ]

    def draft(self, tokens_1T: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return drafts (1 x K) after ``tokens_1T`` and the distributions (K x V) they come from.

        Args:
            tokens_1T: All final tokens, one more than positions observed.
            count: Drafts, at most one for each module.
        """
        end, known = self.lengths[0], tokens_1T.shape[1]
        q_KV = torch.empty(count, self.model.head.out_features, device=tokens_1T.device)
        for place, module in enumerate(self.modules[:count]):
            depth = place + 1
            start, self.lengths[depth] = self.lengths[depth], end
            state_1TD = module(
                self.states_1TD[place][:, start:end],
                self.model.embedding(tokens_1T[:, start + depth :]),
                self.layers[place],
                start,
            )
            if depth < len(self.modules):
                self.states_1TD[depth][:, start:end] = state_1TD
            q_KV[place] = self.sampling.probabilities(self.model.head(state_1TD[0, -1]))
            draft_1 = self.sampling.draw(q_KV[place, None], self.generator)
            tokens_1T = torch.cat((tokens_1T, draft_1[:, None]), dim=1)
        return tokens_1T[:, known:], q_KV


@torch.no_grad()
def generate_speculatively(
    model: Decoder,
    prompt_1T: Tensor,
    new_tokens: int,
    *,
    sampling: Sampling = GREEDY,
    end_token: int | None = None,
    generator: torch.Generator | None = None,
    form: CacheForm = "absorbed",
) -> SpeculativeGeneration:
    """Return the tokens that plain generation would, drafted by the model's prediction modules.

    Args:
        model: In evaluation mode, with prediction modules.
        prompt_1T: One prompt.
        new_tokens: After the prompt.
        sampling: How tokens are drawn.
        end_token: Ends the sequence; None: no token does.
        generator: Source of randomness on the model's device; None: torch's own.
        form: What latent attention caches.

    Raises:
        ValueError: If the model has no prediction modules, there are several prompts or an empty
            one, or nothing is to be generated.
    """
    check_request(prompt_1T, new_tokens)
    if model.prediction is None:
        raise ValueError("prediction: found none, expected a model with multi-token prediction")
    if len(prompt_1T) != 1:
        raise ValueError(f"prompts: found {len(prompt_1T)}, expected one at a time")
    length = prompt_1T.shape[1]
    end = length + new_tokens
    cache = model.new_cache(1, end, form=form)
    drafter = Drafter(model, cache, sampling, generator)
    tokens_1T = prompt_1T
    # Drafted and kept tokens of each pass of the main model.
    passes: list[tuple[int, int]] = []
    while tokens_1T.shape[1] < end:
        # Nothing to draft from before the prompt is read, nor for what would not be used.
        count = min(len(drafter.modules), end - tokens_1T.shape[1] - 1) if passes else 0
        new_1T, kept = _pass(drafter, cache, tokens_1T, count)
        tokens_1T = torch.cat((tokens_1T, new_1T), dim=1)
        passes.append((count, kept))
        if end_token is not None and (ends := (new_1T[0] == end_token).nonzero()).numel():
            tokens_1T = tokens_1T[:, : tokens_1T.shape[1] - new_1T.shape[1] + int(ends[0]) + 1]
            break
    places = range(len(drafter.modules))
    return SpeculativeGeneration(
        tokens_1N=tokens_1T[:, length:],
        forwards=len(passes),
        drafted=tuple(sum(count > place for count, _ in passes) for place in places),
        accepted=tuple(sum(kept > place for _, kept in passes) for place in places),
    )


def _pass(drafter: Drafter, cache: Cache, tokens_1T: Tensor, count: int) -> tuple[Tensor, int]:
    """Return the new final tokens of one pass of the main model, and how many were drafts."""
    model, sampling = drafter.model, drafter.sampling
    drafts_1K, q_KV = drafter.draft(tokens_1T, count)
    inputs_1T = torch.cat((tokens_1T[:, cache.length :], drafts_1K), dim=1)
    features_1TD = model.features(inputs_1T, cache)
    p_MV = sampling.probabilities(model.head(features_1TD[0, -count - 1 :]))
    kept, next_1 = verify(p_MV, q_KV, drafts_1K[0], sampling, drafter.generator)
    rejected = count - kept
    cache.length -= rejected
    drafter.observe(features_1TD[:, : inputs_1T.shape[1] - rejected])
    return torch.cat((drafts_1K[:, :kept], next_1[:, None]), dim=1), kept


def verify(
    p_MV: Tensor,
    q_KV: Tensor,
    drafts_K: Tensor,
    sampling: Sampling,
    generator: torch.Generator | None,
) -> tuple[int, Tensor]:
    """Return how many drafts are accepted, and the token (1) after them.

    A draft x is accepted with probability min(1, p(x) / q(x)); the first that is not is drawn anew
    from the residual (arXiv 2211.17192, algorithm 1), and after the last comes one more token.

    Args:
        p_MV: The main model's distributions, one more than drafts.
        q_KV: The distributions that the drafts were drawn from.
        drafts_K: The drafts.
        sampling: How the last token is drawn.
        generator: Source of randomness on the same device; None: torch's own.
    """
    count = len(drafts_K)
    chances_K = acceptance(p_MV[:count], q_KV).gather(1, drafts_K[:, None]).squeeze(1)
    dice_K = torch.rand(count, generator=generator, device=p_MV.device)
    kept = int((dice_K < chances_K).long().cumprod(0).sum())
    left_V = residual(p_MV[kept], q_KV[kept]) if kept < count else p_MV[kept]
    return kept, sampling.draw(left_V[None], generator)


def acceptance(p: Tensor, q: Tensor) -> Tensor:
    """Return the probability min(1, p / q) of accepting each token; 1 where q has none."""
    return torch.where(q > p, p / q, 1.0)


def residual(p_V: Tensor, q_V: Tensor) -> Tensor:
    """Return the distribution (p - q)+ over its sum, that of the token for a rejected draft.

    Where rounding leaves no token with p above q the two distributions are equal, and p it is.
    """
    excess_V = (p_V - q_V).clamp(min=0)
    total = excess_V.sum()
    return torch.where(total > 0, excess_V / total, p_V)
