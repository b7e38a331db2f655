"""Our language models as lm-eval sees them.

Shape suffixes: B batch, T positions, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer
from torch import Tensor, nn

from harness.data.tokenizers import END_OF_TEXT
from harness.errors import UserError

# What one request to score is: its text (the cache's key), the context and what follows it.
Request = tuple[Any, list[int], list[int]]
DEFAULT_NEW_TOKENS = 256


class HarnessLM(TemplateLM):
    """A decoder and its tokenizer behind lm-eval's interface.

    Contexts and continuations are split, truncated and windowed exactly as lm-eval's own ``HFLM``
    does. Requests are sorted by length and batched with a fixed size, so that scores do not depend
    on which tasks run together.

    Args:
        model: Maps tokens (B x T) to logits (B x T x V).
        tokenizer: With the token ``<|endoftext|>``, which also stands before an empty context.
        device: Where the model is.
        max_length: Longest input in tokens.
        batch_size: Requests per forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        device: str,
        max_length: int,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self._device = torch.device(device)
        self.max_length, self.batch_size = max_length, batch_size

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        token = self.tokenizer.token_to_id(END_OF_TEXT)
        assert token is not None, "every tokenizer of the project has it"
        return token

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the tokens of ``string``; no special tokens are added."""
        return self.tokenizer.encode(string, add_special_tokens=False).ids

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood in nats of each whole text, in windows of ``max_length``."""
        windows: list[Request] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, pairs):
                windows.append((None, context, continuation))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of each continuation, in the given order.

        Raises:
            UserError: If a continuation alone is longer than the model's inputs.
        """
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise UserError(
                f"evaluation.tasks: a continuation has {longest} tokens, expected at most the "
                f"{self.max_length} of training.sequence_length"
            )
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for indices in self._batches([len(c) + len(k) for _, c, k in requests]):
            # The last token is only predicted; what does not fit is cut from the left.
            inputs = [(requests[i][1] + requests[i][2])[-(self.max_length + 1) :][:-1]
                      for i in indices]  # fmt: skip
            logits_BTV = self.model(self._padded(inputs)).float()
            for row, index in enumerate(indices):
                text, _, continuation = requests[index]
                end = len(inputs[row])
                answers[index] = _score(logits_BTV[row, :end], continuation)
                if text is not None:
                    self.cache_hook.add_partial("loglikelihood", text, answers[index])
        return answers

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return greedy continuations, each cut at its first stop string.

        Raises:
            ValueError: If a task asks for sampling, which this adapter does not do.
        """
        texts = [""] * len(requests)
        grouped: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            grouped[repr(request.args[1])].append(index)
        for members in grouped.values():
            options = requests[members[0]].args[1]
            if options.get("do_sample") or options.get("temperature", 0) > 0:
                raise ValueError(f"generation_kwargs: found {options}, expected greedy decoding")
            contexts = [self.tok_encode(requests[i].args[0]) for i in members]
            for part in self._batches([len(context) for context in contexts]):
                generated = self._greedy([contexts[i] for i in part], options)
                for position, text in zip(part, generated, strict=True):
                    request = requests[members[position]]
                    texts[members[position]] = text
                    self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _greedy(self, contexts: list[list[int]], options: dict[str, Any]) -> list[str]:
        stops = options.get("until") or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        limit = options.get("max_gen_toks", DEFAULT_NEW_TOKENS)
        rows = [context[-(self.max_length - limit) :] or [self.prefix_token_id]
                for context in contexts]  # fmt: skip
        starts = [len(row) for row in rows]
        open_rows = set(range(len(rows)))
        for _ in range(limit):
            active = sorted(open_rows)
            if not active:
                break
            logits_BTV = self.model(self._padded([rows[i] for i in active]))
            for position, index in enumerate(active):
                token = int(logits_BTV[position, len(rows[index]) - 1].argmax())
                rows[index].append(token)
                text = self.tokenizer.decode(rows[index][starts[index] :])
                if token == self.eot_token_id or any(stop in text for stop in stops):
                    open_rows.discard(index)
        texts = [
            self.tokenizer.decode(row[start:]) for row, start in zip(rows, starts, strict=True)
        ]
        return [_cut(text, stops) for text in texts]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield indices in batches of similar length, the longest first."""
        order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _padded(self, rows: list[list[int]]) -> Tensor:
        """Return the rows (B x T) padded on the right, where causal attention never looks."""
        width = max(len(row) for row in rows)
        padded = [row + [self.eot_token_id] * (width - len(row)) for row in rows]
        return torch.tensor(padded, device=self._device)


def _score(logits_TV: Tensor, continuation: list[int]) -> tuple[float, bool]:
    """Return log-likelihood and greediness of ``continuation``, which ends the sequence."""
    logits_TV = logits_TV[-len(continuation) :]
    targets_T = torch.tensor(continuation, device=logits_TV.device)
    chosen_T = logits_TV.log_softmax(-1).gather(1, targets_T[:, None])
    return chosen_T.sum().item(), bool((logits_TV.argmax(-1) == targets_T).all())


def _cut(text: str, stops: list[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text
