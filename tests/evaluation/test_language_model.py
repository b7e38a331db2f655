"""Our adapter against lm-eval's own HFLM, which loads what `harness export` would write."""

import os
import socket
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from standard_rows import GQA, MLA, STANDARD, TEXTS, decoder
from tokenizers.processors import TemplateProcessing
from torch import nn

from harness.data.tokenizers import END_OF_TEXT, make_tokenizer
from harness.errors import UserError
from harness.evaluation.completion import complete_greedily
from harness.evaluation.heldout_tasks import HELDOUT_TASKS, write_heldout_tasks
from harness.evaluation.language_model import HarnessLM
from harness.evaluation.run import LoadedTask, evaluate_language_model, load_tasks
from harness.interchange.folder import export_folder
from harness.models.cache import Cache

LENGTH = 48


@pytest.fixture(scope="module", params=[GQA, MLA], ids=["gqa", "mla"])
def model(request, tokenizer):
    return decoder(request.param, tokenizer.get_vocab_size())


def exported(model, tokenizer, folder: Path) -> HFLM:
    tokenizer.save(str(folder / "tokenizer.json"))
    export_folder(
        model,
        folder / "model",
        max_position_embeddings=LENGTH,
        tokenizer_file=folder / "tokenizer.json",
    )
    return HFLM(pretrained=str(folder / "model"), dtype="float32", batch_size=3, device="cpu")


@pytest.fixture(scope="module")
def theirs(model, tokenizer, tmp_path_factory) -> HFLM:
    return exported(model, tokenizer, tmp_path_factory.mktemp("exported"))


def ours(model, tokenizer, batch_size: int = 4) -> HarnessLM:
    return HarnessLM(model, tokenizer, "cpu", max_length=LENGTH, batch_size=batch_size)


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


def answers(*continuations: str, context: str) -> list[tuple[str, str]]:
    return [(context, continuation) for continuation in continuations]


QUESTION = "Question: How wide is the river?\nAnswer:"
LONG = "A very long context that has to be cut from the left. " * 10
PAIRS = [
    *answers(" no", " yes", context="The river is wide.\nQuestion: is it?\nAnswer:"),
    *answers(" one", " one metre", " one metre wide", " wide", " n", " ", context=QUESTION),
    *answers(" one", " two", context=QUESTION.replace("wide", "deep")),
    *answers("eggs):", "eggs", "(", context="def spam("),
    *answers("import os", "x", END_OF_TEXT + "x", context=""),
    *answers("continuation", "another", context="trailing spaces  "),
    *answers(" The end.", " The", context=LONG),
    *answers("y", context="x"),
    *answers("\u00e9 costs", context="a caf"),
    *answers(" costs", context=END_OF_TEXT + "it"),
    # The tokens of a word that goes on are not those of its parts.
    ("im", "port os"),
    # One continuation after two contexts.
    ("The boat fits because the boat", " was wide."),
    ("The boat fits because the river", " was wide."),
    ("The boat fits because the river", " was wide."),
    # As long as the model reads.
    ("x", "0123456789" * 4 + "01234567"),
]


def assert_equal_answers(found, expected):
    assert [flag for _, flag in found] == [flag for _, flag in expected]
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_loglikelihoods_equal_hflm(model, tokenizer, theirs, batch_size):
    expected = theirs.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    found = ours(model, tokenizer, batch_size).loglikelihood(
        requests("loglikelihood", PAIRS), disable_tqdm=True
    )
    assert_equal_answers(found, expected)


def test_each_part_of_equal_tokens_has_its_own_loglikelihood(model, tokenizer, theirs):
    """Asked one at a time: together, HFLM takes the first places for the shorter continuation."""
    tokens = tokenizer.encode(TEXTS[3]).ids
    asked = [(None, tokens[:place], tokens[place:]) for place in (1, 5, len(tokens) - 1)]
    expected = [theirs._loglikelihood_tokens([one], disable_tqdm=True)[0] for one in asked]
    assert_equal_answers(ours(model, tokenizer)._loglikelihood_tokens(asked), expected)


def test_greedy_flags_equal_hflm(model, tokenizer, theirs):
    """Continuations of which none, a part or all is what the model itself would say."""
    asked = []
    for text in TEXTS:
        context = tokenizer.encode(text).ids[:20]
        greedy = complete_greedily(model, [context], 4, lambda made: False)[0]
        for known in range(5):
            asked.append((None, context, greedy[:known] + [(t + 1) % 300 for t in greedy[known:]]))
            asked.append((None, context, greedy[: max(1, known)]))
    expected = theirs._loglikelihood_tokens(asked, disable_tqdm=True)
    assert_equal_answers(ours(model, tokenizer)._loglikelihood_tokens(asked), expected)
    assert {flag for _, flag in expected} == {False, True}


def test_tokens_that_the_tokenizer_puts_around_a_text_are_those_of_hflm(tmp_path):
    tokenizer = make_tokenizer({"type": "bytes"}, [], "test")
    start = (END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))
    tokenizer.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[start]
    )
    model = decoder(GQA, tokenizer.get_vocab_size())
    reference, adapter = exported(model, tokenizer, tmp_path), ours(model, tokenizer)
    for text in ("a river", END_OF_TEXT + "a river"):
        assert adapter.tok_encode(text) == reference.tok_encode(text)
        assert adapter.tok_encode(text).count(start[1]) == 1
    # HFLM itself takes the wrong places for requests whose tokens are equal but parted elsewhere.
    pairs = [("a", " river"), ("", "a boat"), (END_OF_TEXT + "the", " river"), ("so ", "river")]
    assert_equal_answers(
        adapter.loglikelihood(requests("l", pairs), disable_tqdm=True),
        reference.loglikelihood(requests("l", pairs), disable_tqdm=True),
    )
    texts = [("a river",), ("x" * 100,)]
    expected = reference.loglikelihood_rolling(requests("r", texts), disable_tqdm=True)
    assert adapter.loglikelihood_rolling(requests("r", texts)) == pytest.approx(expected, abs=1e-3)


def test_rolling_loglikelihoods_equal_hflm(model, tokenizer, theirs):
    texts = [(text * 4,) for text in TEXTS] + [("",), ("x",), (TEXTS[3],)]
    expected = theirs.loglikelihood_rolling(requests("r", texts), disable_tqdm=True)
    found = ours(model, tokenizer).loglikelihood_rolling(requests("r", texts))
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False},
        {"until": "e", "max_new_tokens": 20},
        {"until": [], "max_gen_toks": 30, "temperature": 0.0},
    ],
)
def test_greedy_generations_equal_hflm(model, tokenizer, theirs, options):
    arguments = [(context, options) for context in dict(PAIRS) if context]
    expected = theirs.generate_until(requests("g", arguments), disable_tqdm=True)
    found = ours(model, tokenizer).generate_until(requests("g", arguments))
    assert found == expected
    assert len(set(found)) > 5


@pytest.mark.parametrize("end", [False, True])
def test_generation_ends_at_the_end_of_text(tokenizer, end):
    ids = tokenizer.encode("a river").ids
    end_token = tokenizer.token_to_id(END_OF_TEXT)
    oracle = Oracle([*ids, *([end_token] if end else []), *ids], tokenizer.get_vocab_size())
    options = {"until": [], "max_gen_toks": 20}
    found = ours(oracle, tokenizer).generate_until(requests("g", [("a", options)]))
    assert (found == [" river"]) == end


def scores(lm, tasks: list[LoadedTask], limit: int) -> dict[str, float]:
    found = {}
    for task in tasks:
        answer = evaluate(lm=lm, task_dict={"tasks": task.tasks}, limit=limit, bootstrap_iters=1000,
                          log_samples=False)  # fmt: skip
        for key, value in answer["results"][task.name].items():
            if isinstance(value, float):
                name = key.removesuffix(",none")
                found[f"lm_eval/{task.name}/{name}"] = value
    return found


def assert_equal_scores(model, tokenizer, theirs, tasks, limit):
    expected = scores(theirs, tasks, limit)
    records = evaluate_language_model(ours(model, tokenizer), tasks, limit)
    found = {record["metric"]: record["value"] for record in records}
    found.pop("lm_eval/average/acc")
    assert set(found) == set(expected)
    for name, value in expected.items():
        exact = name.split("/")[-1].startswith("acc")
        assert found[name] == pytest.approx(value, rel=0 if exact else 1e-5), name


def test_scores_of_standard_tasks_equal_hflm(model, tokenizer, theirs, mirror, tmp_path):
    tasks = load_tasks(tuple(STANDARD), tmp_path / "tasks", mirror, tmp_path / "cache")
    assert_equal_scores(model, tokenizer, theirs, tasks, 10)


REAL = ("hellaswag", "arc_easy", "boolq", "winogrande", "lambada_openai")


@pytest.mark.skipif("HARNESS_DATA" not in os.environ, reason="HARNESS_DATA is not set")
def test_scores_on_real_documents_equal_hflm(model, tokenizer, theirs, tmp_path):
    folder = Path(os.environ["HARNESS_DATA"]) / "tasks"
    tasks = load_tasks(REAL, tmp_path / "tasks", folder, tmp_path / "cache")
    # Answers that fit into the window of these models.
    wide = ours(model, tokenizer)
    wide.max_length = theirs._max_length = 512
    expected = scores(theirs, tasks, 20)
    theirs._max_length = None
    found = {r["metric"]: r["value"] for r in evaluate_language_model(wide, tasks, 20)}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_a_continuation_longer_than_the_model_is_refused(model, tokenizer):
    with pytest.raises(UserError, match=r"continuation of 90, expected .* at most 48, which is"):
        ours(model, tokenizer).loglikelihood(
            requests("l", [("x", "0123456789" * 9)]), disable_tqdm=True
        )


def test_a_continuation_without_a_token_is_refused(model, tokenizer):
    with pytest.raises(UserError, match="continuation of 0, expected one token or more"):
        ours(model, tokenizer).loglikelihood(requests("l", [("x", "")]), disable_tqdm=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": [], "max_gen_toks": 48}, "found 48 new tokens, expected fewer than the 48"),
        ({"until": []}, "found 256 new tokens"),
        ({"until": [], "temperature": 0.5, "max_gen_toks": 4}, "expected greedy decoding"),
    ],
)
def test_generation_that_cannot_be_done_is_refused(model, tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        ours(model, tokenizer).generate_until(requests("g", [("x", options)]))


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
    """A model that knows one sequence of tokens by heart."""

    def __init__(self, tokens: list[int], vocabulary: int) -> None:
        super().__init__()
        self.following = dict(pairwise(tokens))
        self.embedding = nn.Embedding(vocabulary, vocabulary)
        self.head = nn.Linear(vocabulary, vocabulary, bias=False)
        nn.init.eye_(self.head.weight)

    def new_cache(self, batch_size: int, capacity: int, **_) -> Cache:
        return Cache([], capacity)

    def features(self, tokens: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, self.head.in_features)
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
    tasks = load_tasks(HELDOUT_TASKS, tmp_path / "tasks", None, tmp_path / "cache")
    records = evaluate_language_model(model, tasks, 4)
    found = {record["metric"]: record["value"] for record in records}
    certain = torch.zeros(vocabulary).index_fill(0, torch.tensor(1), 5.0).log_softmax(0)[1].item()
    # Each window of 64 tokens follows what came before; only the very first byte is unknown.
    expected = -certain / torch.log(torch.tensor(2.0)).item()
    assert found["lm_eval/heldout_bits_per_byte/bits_per_byte"] == pytest.approx(expected, rel=0.02)
    assert 0 <= found["lm_eval/heldout_continuation/acc"] <= 1
    assert found["lm_eval/average/acc"] == found["lm_eval/heldout_continuation/acc"]
    # The cycle goes on as the model says.
    assert found["lm_eval/heldout_completion/chrf"] == pytest.approx(100)
    assert {record["labels"]["source"] for record in records[:-1]} == {"embedded"}
