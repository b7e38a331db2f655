"""Throughput of preparing text beside `tokenizers` alone on the same texts.

    python benchmarks/tokenizing.py --output tokenizing.json

Preparing reads Parquet or JSONL, assigns documents to splits, tokenises, and writes shards with
digests and progress; `tokenizers` alone encodes the same texts, which lie in memory, by batch. All
take turns, and the number to compare is the ratio of their throughputs within a round: 1 means that
nothing but the tokenizer takes time. Both use all cores (RAYON_NUM_THREADS says fewer).
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer

from harness.data.text import prepare_text
from harness.data.text_sources import open_source
from harness.data.tokenizers import make_tokenizer
from harness.files import write_json
from harness.records.provenance import environment

WARMUP_ROUNDS = 1
# Documents of a batch of `tokenizers` alone, as its documentation shows.
BATCH = 1000
# More documents than one read from a table at a time.
ROW_GROUP = 1000


def corpus(megabytes: float) -> list[str]:
    """Return the standard library's modules, repeated up to this size, as FineWeb-sized texts."""
    modules = [document.text for document in open_source({"type": "python_standard_library"}, "")]
    everything = "".join(modules)
    characters = round(megabytes * 1e6)
    everything *= -(-characters // len(everything))
    # Five thousand characters: about a thousand tokens, the mean of FineWeb-Edu's documents.
    return [everything[start : start + 5000] for start in range(0, characters, 5000)]


def write_tables(texts: list[str], folder: Path) -> dict[str, Path]:
    """Write the texts as each kind of table and return the folders by kind."""
    folders = {kind: folder / kind for kind in ("parquet", "jsonl")}
    for made in folders.values():
        made.mkdir()
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, folders["parquet"] / "texts.parquet", ROW_GROUP)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folders["jsonl"] / "texts.jsonl").write_text(lines)
    return folders


def encode_alone(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Encode the texts in batches, and nothing else."""
    remaining = iter(texts)
    while batch := list(islice(remaining, BATCH)):
        tokenizer.encode_batch_fast(batch, add_special_tokens=False)


def preparations(
    folders: dict[str, Path], tokenizer_file: Path, folder: Path
) -> dict[str, Callable[[], Any]]:
    """Return functions that prepare each kind of table into a folder of its own."""

    def prepare(kind: str) -> None:
        with TemporaryDirectory(dir=folder) as output:
            spec = {
                "kind": "text",
                "source": {"type": "local", "path": str(folders[kind]), "column": "text"},
                "tokenizer": {"type": "tokenizer_file", "path": str(tokenizer_file)},
                "validation_fraction": 0.05,
                "test_fraction": 0.05,
                "maximum_bytes": None,
            }
            prepare_text(spec, Path(output), "tokenizing")

    return {kind: lambda kind=kind: prepare(kind) for kind in folders}


def measure(texts: list[str], vocab_size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Return median throughputs (bytes/s) and the median ratios within a round."""
    tokenizer_spec = {"type": "bpe", "vocab_size": vocab_size}
    tokenizer = make_tokenizer(tokenizer_spec, texts, "tokenizing")
    tokenizer.save(str(folder / "tokenizer.json"))
    tables = write_tables(texts, folder)
    steps = {"tokenizers": lambda: encode_alone(tokenizer, texts)}
    steps |= preparations(tables, folder / "tokenizer.json", folder)
    size = sum(len(text.encode()) for text in texts)
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-WARMUP_ROUNDS, rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_ >= 0:
                rates[name].append(size / (time.perf_counter() - start))
    return {
        "bytes": size,
        "documents": len(texts),
        "bytes_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratios": {
            name: statistics.median(
                ours / alone for ours, alone in zip(rates[name], rates["tokenizers"], strict=True)
            )
            for name in tables
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print the ratios and write everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--megabytes", type=float, default=50, help="of text")
    parser.add_argument("--vocab-size", type=int, default=8192, help="of the trained tokenizer")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds: found {options.rounds}, expected at least 1")
    # Also false for what is not a number.
    if not 0.1 <= options.megabytes < math.inf:
        parser.error(f"--megabytes: found {options.megabytes}, expected at least 0.1, and finite")
    with TemporaryDirectory() as folder:
        texts = corpus(options.megabytes)
        report = measure(texts, options.vocab_size, options.rounds, Path(folder))
    report |= {
        "vocab_size": options.vocab_size,
        "rounds": options.rounds,
        "environment": environment(),
    }
    write_json(options.output, report)
    print(json.dumps({"ratios": report["ratios"]}, indent=1))


if __name__ == "__main__":
    main()
