"""Generation of text token by token, with a preallocated cache.

Shape suffixes: B batch, T prompt positions, N new tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.cache import CacheForm
from harness.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Only so many of the likeliest tokens are drawn from; None: all.

    Raises:
        ValueError: If the temperature is negative or ``top_k`` is not positive.
    """

    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature: found {self.temperature}, expected 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: found {self.top_k}, expected 1 or more, or None")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the distribution (... x V) that tokens are drawn from, given ``logits``."""
        vocabulary = logits.shape[-1]
        if self.temperature == 0:
            return F.one_hot(logits.argmax(-1), vocabulary).float()
        scaled = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < vocabulary:
            least = scaled.topk(self.top_k, dim=-1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < least, float("-inf"))
        return scaled.softmax(-1)

    def draw(self, probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return one token (B) for each of the distributions (B x V).

        Args:
            probabilities: Of ``probabilities``; need not sum to one.
            generator: Source of randomness on the same device; None: torch's own.
        """
        if self.temperature == 0:
            return probabilities.argmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


GREEDY = Sampling(temperature=0.0)


@torch.no_grad()
def generate(
    model: Decoder,
    prompts_BT: Tensor,
    new_tokens: int,
    *,
    sampling: Sampling = GREEDY,
    end_token: int | None = None,
    generator: torch.Generator | None = None,
    form: CacheForm = "absorbed",
) -> Tensor:
    """Return the tokens after each prompt (B x N, N at most ``new_tokens``).

    A sequence that has ended is filled up with its end token.

    Args:
        model: In evaluation mode.
        prompts_BT: Prompts of one length.
        new_tokens: After each prompt.
        sampling: How tokens are drawn.
        end_token: Ends a sequence; None: no token does.
        generator: Source of randomness on the model's device; None: torch's own.
        form: What latent attention caches.

    Raises:
        ValueError: If there is no prompt to continue or nothing to generate.
    """
    check_request(prompts_BT, new_tokens)
    batch, length = prompts_BT.shape
    cache = model.new_cache(batch, length + new_tokens, form=form)
    open_B = torch.ones(batch, dtype=torch.bool, device=prompts_BT.device)
    inputs_BT, tokens = prompts_BT, []
    for _ in range(new_tokens):
        logits_BV = model.head(model.features(inputs_BT, cache)[:, -1])
        token_B = sampling.draw(sampling.probabilities(logits_BV), generator)
        if end_token is not None:
            token_B = token_B.where(open_B, end_token)
            open_B &= token_B != end_token
        tokens.append(token_B)
        if end_token is not None and not open_B.any():
            break
        inputs_BT = token_B[:, None]
    return torch.stack(tokens, dim=1)


def check_request(prompts_BT: Tensor, new_tokens: int) -> None:
    """Raise ValueError if a prompt is empty or no token is asked for."""
    if prompts_BT.ndim != 2 or prompts_BT.shape[1] == 0:
        raise ValueError(f"prompts: found shape {tuple(prompts_BT.shape)}, expected one row of at "
                         "least one token for each sequence")  # fmt: skip
    if new_tokens < 1:
        raise ValueError(f"new_tokens: found {new_tokens}, expected 1 or more")
