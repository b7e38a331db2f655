"""What the scripts in ``benchmarks/`` have in common: options, and what a report says of itself."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from harness.files import write_json
from harness.processor import keep_freed_memory
from harness.records.provenance import environment


def benchmark_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark that runs on a device."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


def parse_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Return the options, or end with one line if a GPU is asked for and none is there.

    What is timed has the memory of a job.

    Args:
        parser: Of ``benchmark_parser``, with an option ``--rounds``.
        arguments: Of the command line; None for this process's.
    """
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: found 'cuda', but torch sees no GPU; expected 'cpu'")
    if options.rounds < 1:
        parser.error(f"--rounds: found {options.rounds}, expected at least 1")
    keep_freed_memory()
    return options


def positive(text: str) -> int:
    """Return a whole number above 0; argparse answers an error with the option and what it got."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def write_report(options: argparse.Namespace, report: Mapping[str, Any]) -> None:
    """Write a report to ``--output``, with rounds, threads and environment unless it has its own.

    Args:
        options: Of ``parse_options``.
        report: What was found.
    """
    about = {"rounds": options.rounds, "threads": torch.get_num_threads(),
             "environment": environment()}  # fmt: skip
    write_json(options.output, {**about, **report})
