"""Our decoders as lm-eval sees them."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

from harness.data.tokenizers import END_OF_TEXT
from harness.errors import UserError
from harness.evaluation.completion import complete_greedily, similar_lengths
from harness.evaluation.scoring import score_batch
from harness.evaluation.scoring_plan import Request, make_request, plan_passes
from harness.models.decoder import Decoder

# The text of a request, which is the key of lm-eval's cache, its context and its continuation.
Tokenised = tuple[Any, list[int], list[int]]
DEFAULT_NEW_TOKENS = 256


class HarnessLM(TemplateLM):
    """A decoder and its tokenizer behind lm-eval's interface.

    Texts are tokenised, split, truncated and windowed exactly as lm-eval's own ``HFLM`` does with
    the exported model. The size of batches is fixed, so that scores do not depend on which tasks
    run together.

    Args:
        model: The decoder.
        tokenizer: With the token ``<|endoftext|>``, which also stands before an empty context.
        device: Where to compute.
        max_length: Longest input in tokens.
        batch_size: Most sequences in a forward pass.
    """

    def __init__(
        self,
        model: Decoder,
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
        # The choices of a question come one after the other with the same context.
        self._encode = lru_cache(maxsize=1024)(self._tokens)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        token = self.tokenizer.token_to_id(END_OF_TEXT)
        assert token is not None, "every tokenizer of the project has it"
        return token

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the tokens of ``string``.

        Args:
            string: A text.
            add_special_tokens: Whether to add what the tokenizer puts around a text; None: as in
                training, unless the text begins with the token that starts one.
            kwargs: Of other adapters.
        """
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(END_OF_TEXT)
        return list(self._encode(string, add_special_tokens))

    def _tokens(self, string: str, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(string, add_special_tokens=add_special_tokens).ids)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood in nats of each whole text, in windows of ``max_length``."""
        windows: list[Tokenised] = []
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

    def _loglikelihood_tokens(
        self, requests: list[Tokenised], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of each continuation, in the given order.

        Raises:
            UserError: If a continuation is empty or alone is longer than the model's inputs.
        """
        asked = [self._request(*request) for request in requests]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(asked)
        for batch in plan_passes(asked, self.batch_size):
            for index, answer in score_batch(self.model, batch, asked).items():
                answers[index] = answer
                text = requests[index][0]
                if text is not None:
                    self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def _request(self, text: Any, context: list[int], continuation: list[int]) -> Request:
        try:
            return make_request(context, continuation, self.max_length)
        except ValueError as error:
            raise UserError(f"evaluation.tasks: {error}, which is training.sequence_length; the "
                            f"text is {str(text)[:200]!r}") from None  # fmt: skip

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return greedy continuations, each cut at its first stop string.

        Raises:
            UserError: If a task asks for sampling, which this adapter does not do, or for more
                tokens than the model reads.
        """
        texts = [""] * len(requests)
        grouped: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            grouped[repr(request.args[1])].append(index)
        for members in grouped.values():
            contexts = [requests[index].args[0] for index in members]
            generated = self._generate(contexts, requests[members[0]].args[1])
            for index, text in zip(members, generated, strict=True):
                texts[index] = text
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
        return texts

    def _generate(self, contexts: Sequence[str], given: dict[str, Any]) -> list[str]:
        options: dict[str, Any] = dict(normalize_gen_kwargs(given, DEFAULT_NEW_TOKENS))
        new_tokens = options["max_gen_toks"]
        if options["do_sample"]:
            raise UserError(f"evaluation.tasks: generation_kwargs: found {given}, expected greedy "
                            "decoding")  # fmt: skip
        if new_tokens >= self.max_length:
            raise UserError(f"evaluation.tasks: generation_kwargs: found {new_tokens} new tokens, "
                            f"expected fewer than the {self.max_length} of "
                            "training.sequence_length")  # fmt: skip
        stops = handle_stop_sequences(options.get("until"), eos=END_OF_TEXT)
        room = self.max_length - new_tokens
        tokens = [self.tok_encode(text)[-room:] or [self.prefix_token_id] for text in contexts]

        def finished(made: list[int]) -> bool:
            if made[-1] == self.eot_token_id:
                return True
            text = self.tokenizer.decode(made)
            return any(stop in text for stop in stops)

        texts = [""] * len(contexts)
        lengths = [len(row) for row in tokens]
        for part in similar_lengths(lengths, new_tokens, self.batch_size):
            rows = complete_greedily(self.model, [tokens[i] for i in part], new_tokens, finished)
            for index, row in zip(part, rows, strict=True):
                text = self.tokenizer.decode(row)
                texts[index] = postprocess_generated_text(text, stops, None)
        return texts
