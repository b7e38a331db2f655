"""Our adapter against lm-eval's own HFLM on the same weights and tokenizer."""

import socket
from itertools import pairwise

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.data.tokenizers import END_OF_TEXT, make_tokenizer
from harness.errors import UserError
from harness.evaluation.heldout_tasks import HELDOUT_TASKS, write_heldout_tasks
from harness.evaluation.language_model import HarnessLM
from harness.evaluation.run import evaluate_language_model

TEXTS = [
    "def spam(eggs):\n    return eggs + 1\n",
    "import os\n\nfor name in os.listdir('.'):\n    print(name)\n",
    "A caf\u00e9 costs 3 \u20ac; \u00bfno?",
    "x" * 100,
]
LENGTH = 32


class Logits(nn.Module):
    """The logits of a transformers model, as our decoders return them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens).logits


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer({"type": "bpe", "vocab_size": 300}, TEXTS * 5, "test")


@pytest.fixture(scope="module")
def network(tokenizer) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def theirs(network, tokenizer) -> HFLM:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    return HFLM(pretrained=network, tokenizer=fast, batch_size=3, max_length=LENGTH, device="cpu")


def ours(network, tokenizer, batch_size: int = 3) -> HarnessLM:
    return HarnessLM(Logits(network), tokenizer, "cpu", max_length=LENGTH, batch_size=batch_size)


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


PAIRS = [
    ("def spam(", "eggs):"),
    ("", "import os"),
    ("trailing space ", "continuation"),
    ("A very long context that has to be cut from the left. " * 10, " The end."),
    ("x", "y"),
    ("a caf", "\u00e9 costs"),
]


def test_loglikelihoods_equal_hflm(network, tokenizer, theirs):
    expected = theirs.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    found = ours(network, tokenizer).loglikelihood(
        requests("loglikelihood", PAIRS), disable_tqdm=True
    )
    assert [flag for _, flag in found] == [flag for _, flag in expected]
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)


def test_rolling_loglikelihoods_equal_hflm(network, tokenizer, theirs):
    texts = [(text * 4,) for text in TEXTS]
    expected = theirs.loglikelihood_rolling(requests("r", texts), disable_tqdm=True)
    found = ours(network, tokenizer).loglikelihood_rolling(requests("r", texts))
    assert found == pytest.approx(expected, abs=1e-3)


def test_greedy_generations_equal_hflm(network, tokenizer, theirs):
    options = {"until": ["\n", "."], "max_gen_toks": 8, "do_sample": False}
    arguments = [(context, options) for context, _ in PAIRS if context]
    expected = theirs.generate_until(requests("g", arguments), disable_tqdm=True)
    found = ours(network, tokenizer).generate_until(requests("g", arguments))
    assert found == expected


def test_scores_do_not_depend_on_the_batch_size(network, tokenizer):
    one, many = (
        ours(network, tokenizer, size).loglikelihood(requests("l", PAIRS), disable_tqdm=True)
        for size in (1, 16)
    )
    assert [value for value, _ in one] == pytest.approx([value for value, _ in many], abs=1e-4)


def test_a_continuation_longer_than_the_model_is_refused(network, tokenizer):
    with pytest.raises(UserError, match=r"has \d+ tokens, expected at most the 32"):
        ours(network, tokenizer).loglikelihood(
            requests("l", [("x", "0123456789" * 9)]), disable_tqdm=True
        )


@pytest.fixture
def documents() -> list[str]:
    return [f"{index}: " + "some words of text, " * 60 + f"end {index}" for index in range(9)]


def test_embedded_tasks_are_the_same_bytes_each_time(documents, tmp_path):
    for folder in ("a", "b"):
        write_heldout_tasks(documents, tmp_path / folder, seed=3, count=20)
    for path in (tmp_path / "a").glob("*.jsonl"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_too_little_text_is_refused(documents, tmp_path):
    with pytest.raises(UserError, match="found 2 held-out documents"):
        write_heldout_tasks(documents[:2], tmp_path, seed=0, count=5)


class Oracle(nn.Module):
    """A model that knows one sentence by heart."""

    def __init__(self, tokens: list[int], vocabulary: int) -> None:
        super().__init__()
        self.following = dict(pairwise(tokens))
        self.vocabulary = vocabulary

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, self.vocabulary)
        for row, line in enumerate(tokens.tolist()):
            for column, token in enumerate(line):
                logits[row, column, self.following.get(token, 0)] = 5.0
        return logits


def test_embedded_tasks_run_without_network_and_give_known_scores(tmp_path, monkeypatch):
    """Text of one cycle of characters: a model that knows the cycle gets known bits per byte."""

    def refuse(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    tokenizer = make_tokenizer({"type": "bytes"}, [], "test")
    cycle = "abcdefgh"
    write_heldout_tasks([cycle * 100] * 5, tmp_path / "tasks", seed=0, count=4)
    ids = tokenizer.encode(cycle + "a").ids
    vocabulary = tokenizer.get_vocab_size()
    model = HarnessLM(Oracle(ids, vocabulary), tokenizer, "cpu", max_length=64, batch_size=4)
    records = evaluate_language_model(
        model, list(HELDOUT_TASKS), tmp_path / "tasks", 4, tmp_path / "cache"
    )
    scores = {record["metric"]: record["value"] for record in records}
    certain = torch.zeros(vocabulary).index_fill(0, torch.tensor(1), 5.0).log_softmax(0)[1].item()
    # Each window of 64 tokens follows what came before; only the very first byte is unknown.
    expected = -certain / torch.log(torch.tensor(2.0)).item()
    assert scores["lm_eval/heldout_bits_per_byte/bits_per_byte"] == pytest.approx(
        expected, rel=0.02
    )
    assert 0 <= scores["lm_eval/heldout_continuation/acc"] <= 1
    assert scores["lm_eval/average/acc"] == scores["lm_eval/heldout_continuation/acc"]
