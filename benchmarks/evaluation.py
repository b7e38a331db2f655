"""Documents per second of our adapter and of lm-eval's HFLM, which loads the exported model.

    python benchmarks/evaluation.py --output evaluation.json

Both get the same requests, tokenizer, weights, type and batch size, in turn and in one process,
and their answers are compared: a ratio of answers that differ would mean nothing. Requests have the
lengths of usual tasks and are cut from the source code of Python's standard library:

* `endings`: four long endings of a long context, as in HellaSwag;
* `choices`: four short answers to a short question, as in ARC;
* `yes_or_no`: two answers of one token after a long passage, as in BoolQ;
* `last_word`: one word after a long context, as in LAMBADA;
* `pages`: whole texts in windows, as in WikiText;
* `completions`: greedy generation.

Time is that of the adapter from text to answers, tokenisation included; prompts are built before.
"""

import argparse
import json
import random
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer

from harness.config.base import validate
from harness.config.decoder_schema import DecoderSpec
from harness.data.tokenizers import make_tokenizer
from harness.evaluation.language_model import HarnessLM
from harness.interchange.folder import export_folder
from harness.measurement.benchmark import benchmark_parser, parse_options, positive, write_report
from harness.models.counts import total_parameters
from harness.models.decoder import Decoder
from harness.torchvision_import import import_torchvision

# Words of a context, of an answer, and answers. A word of code is about three tokens.
STYLES = {"endings": (25, 8, 4), "choices": (8, 2, 4), "yes_or_no": (40, 1, 2),
          "last_word": (25, 1, 1)}  # fmt: skip
PAGE_WORDS = 300
NEW_TOKENS = 32


@dataclass(frozen=True)
class Size:
    """What is evaluated and on how many documents of each style."""

    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    max_length: int
    documents: int
    batch_size: int


# On a CPU ten million parameters, of which the head has the share that it has in GPT-2.
SIZES = {
    "small": Size(32, 2, 300, 64, 3, 4),
    "cpu": Size(256, 6, 8192, 512, 64, 16),
    "cuda": Size(768, 12, 50304, 1024, 1000, 64),
}


def make_model(size: Size) -> Decoder:
    """Return an untrained decoder."""
    heads = max(2, size.hidden_size // 64)
    attention = {"kind": "gqa", "num_attention_heads": heads, "num_key_value_heads": heads}
    spec = {
        "family": "decoder",
        "hidden_size": size.hidden_size,
        "num_hidden_layers": size.num_hidden_layers,
        "attention": attention,
        "feed_forward": {"kind": "swiglu", "intermediate_size": 8 * size.hidden_size // 3},
    }
    return Decoder(validate(DecoderSpec, spec, "model"), size.vocab_size).eval()


def make_requests(words: Sequence[str], documents: int) -> dict[str, list[Instance]]:
    """Return requests by style, each document cut from a random place of ``words``."""
    draw = random.Random(0)

    def cut(length: int) -> str:
        start = draw.randrange(len(words) - length)
        return " ".join(words[start : start + length])

    requests: dict[str, list[Instance]] = {}
    for style, (context_words, answer_words, answers) in STYLES.items():
        requests[style] = []
        for _ in range(documents):
            context = f"Question: {cut(context_words)}\nAnswer:"
            choices = [cut(answer_words) for _ in range(answers)]
            if style == "yes_or_no":
                choices = ["no", "yes"]
            requests[style] += [
                Instance("loglikelihood", {}, (context, f" {choice}"), place)
                for place, choice in enumerate(choices)
            ]
    pages = [(cut(PAGE_WORDS),) for _ in range(max(1, documents // 8))]
    requests["pages"] = [Instance("loglikelihood_rolling", {}, page, 0) for page in pages]
    options = {"until": [], "max_gen_toks": NEW_TOKENS}
    contexts = [cut(draw.randrange(5, 12)) for _ in range(documents)]
    requests["completions"] = [
        Instance("generate_until", {}, (context, options), 0) for context in contexts
    ]
    return requests


def answer(adapter: Any, requests: list[Instance]) -> tuple[float, list[Any]]:
    """Return the seconds that ``adapter`` takes for ``requests``, and its answers."""
    method = getattr(adapter, requests[0].request_type)
    start = time.perf_counter()
    # Answers are numbers and texts on the host: nothing is left to wait for.
    answers = method(requests, disable_tqdm=True)
    return time.perf_counter() - start, answers


def largest_difference(ours: list[Any], theirs: list[Any]) -> float:
    """Return the largest difference of log-likelihoods in nats, infinite for unequal texts."""
    if isinstance(ours[0], str):
        return 0.0 if ours == theirs else float("inf")
    values = [
        [one[0] if isinstance(one, tuple) else one for one in side] for side in (ours, theirs)
    ]
    return max(abs(a - b) for a, b in zip(*values, strict=True))


def compare(
    model: Decoder, tokenizer: Tokenizer, size: Size, requests: dict[str, list[Instance]],
    rounds: int, device: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return a summary by style of the timed rounds after one that is not timed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer.save(str(folder / "tokenizer.json"))
        export_folder(model, folder / "model", max_position_embeddings=size.max_length,
                      tokenizer_file=folder / "tokenizer.json")  # fmt: skip
        theirs = HFLM(pretrained=str(folder / "model"), dtype="float32", device=device,
                      batch_size=size.batch_size)  # fmt: skip
    summaries = []
    for style, asked in requests.items():
        times: dict[str, list[float]] = {"ours": [], "hflm": []}
        difference = 0.0
        for index in range(rounds + 1):
            # Anew each time: it remembers how texts were tokenised.
            ours = HarnessLM(model, tokenizer, device, size.max_length, size.batch_size)
            pair = {"ours": ours, "hflm": theirs}
            # Neither is always the one that runs on a warm machine.
            names = list(pair) if index % 2 else list(pair)[::-1]
            found = {name: answer(pair[name], asked) for name in names}
            if index:
                difference = max(difference, largest_difference(found["ours"][1], found["hflm"][1]))
                for name in names:
                    times[name].append(found[name][0])
        documents = sum(request.idx == 0 for request in asked)
        ratios = [theirs_s / ours_s for ours_s, theirs_s in zip(*times.values(), strict=True)]
        summaries.append({
            "style": style,
            "documents": documents,
            "documents_per_second": {
                name: documents / statistics.median(seconds) for name, seconds in times.items()
            },
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "largest_difference": difference,
        })  # fmt: skip
    return summaries


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument("--rounds", type=positive, default=3, help="timed rounds")
    parser.add_argument("--documents", type=positive, help="of each style")
    parser.add_argument("--batch-size", type=positive, help="most sequences in a forward pass")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print its ratios and write everything as JSON."""
    parser = _parser()
    options = parse_options(parser, arguments)
    # `transformers` imports it by itself.
    import_torchvision()
    size = SIZES["small" if options.small else options.device]
    size = Size(**vars(size) | {
        "documents": options.documents or size.documents,
        "batch_size": options.batch_size or size.batch_size,
    })  # fmt: skip
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    vocabulary = min(size.vocab_size, 8192)
    tokenizer = make_tokenizer({"type": "bpe", "vocab_size": vocabulary}, texts, "tokenizer")
    torch.manual_seed(0)
    model = make_model(size)
    words = " ".join(texts).split()
    requests = make_requests(words, size.documents)
    summaries = compare(model, tokenizer, size, requests, options.rounds, options.device)
    report = {
        "ratios": {row["style"]: row["ratio"] for row in summaries},
        "largest_difference": max(row["largest_difference"] for row in summaries),
        "styles": summaries,
        "size": vars(size),
        "parameters": total_parameters(model.spec, size.vocab_size),
    }
    write_report(options, report)
    print(json.dumps({key: report[key] for key in ("ratios", "largest_difference")}, indent=1))


if __name__ == "__main__":
    main()
