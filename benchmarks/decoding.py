"""Time and memory of decoding with five attentions, all in turn in one process.

    python benchmarks/decoding.py --output decoding.json

The models have the same number of parameters: what an attention saves goes to its feed-forward.
Latent attention has the proportions of DeepSeek-V2-Lite (arXiv 2405.04434): a latent of four heads'
width and half a head of rotary positions, behind 16 heads. All numbers to compare are ratios to
multi-head attention within a round. The longest context follows from counted bytes.

Ratios are those of implementations: heads of equal widths run in torch's fused kernels, latent
attention in plain products. Where arithmetic is slow, as on a CPU, the absorbed form saves less
time than bytes.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from typing import Any, Literal

import torch

from harness.config.base import validate
from harness.config.decoder_schema import DecoderSpec
from harness.measurement.benchmark import benchmark_parser, parse_options, positive, write_report
from harness.measurement.decoding import decode_speed, equal_in_size, longest_context
from harness.models.counts import total_parameters

GIB = 2**30
HEADS = 16
# Widths, and what is timed.
SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 384,
              "vocab_size": 64, "contexts": [8, 32], "batches": [1, 2]},
    "cpu": {"hidden_size": 512, "num_hidden_layers": 4, "intermediate_size": 1536,
            "vocab_size": 4096, "contexts": [512, 2048, 8192], "batches": [1, 4]},
    "cuda": {"hidden_size": 2048, "num_hidden_layers": 8, "intermediate_size": 5632,
             "vocab_size": 32768, "contexts": [1024, 4096, 16384], "batches": [1, 8]},
}  # fmt: skip
# CPUs without units for it emulate bfloat16.
TYPES: dict[str, Literal["float32", "bfloat16"]] = {"cpu": "float32", "cuda": "bfloat16"}


def contenders(size: dict[str, Any]) -> dict[str, DecoderSpec]:
    """Return the models by attention, equal in parameters."""
    head_dim = size["hidden_size"] // HEADS
    grouped = {"kind": "gqa", "num_attention_heads": HEADS}
    attentions = {
        "mha": grouped | {"num_key_value_heads": HEADS},
        "gqa": grouped | {"num_key_value_heads": HEADS // 4},
        "mqa": grouped | {"num_key_value_heads": 1},
        "mla": {
            "kind": "mla",
            "num_attention_heads": HEADS,
            "kv_lora_rank": 4 * head_dim,
            "qk_nope_head_dim": head_dim,
            "qk_rope_head_dim": head_dim // 2,
            "v_head_dim": head_dim,
        },
    }
    specs = {
        name: validate(
            DecoderSpec,
            {
                "family": "decoder",
                "hidden_size": size["hidden_size"],
                "num_hidden_layers": size["num_hidden_layers"],
                "vocab_size": size["vocab_size"],
                "attention": attention,
                "feed_forward": {"kind": "swiglu", "intermediate_size": size["intermediate_size"]},
            },
            name,
        )
        for name, attention in attentions.items()
    }
    return equal_in_size(specs, "mha")


def measure_batch(
    specs: dict[str, DecoderSpec], batch: int, contexts: Sequence[int], rounds: int, device: str
) -> list[dict[str, Any]]:
    """Return the summaries of one batch size, by context and attention."""
    records = decode_speed(specs, contexts, batch, rounds, torch.device(device), TYPES[device])
    cache_bytes = _bytes_of(records, "decode/cache_bytes_per_token")
    weight_bytes = _bytes_of(records, "decode/weight_bytes")
    summaries = []
    for context in contexts:
        times = _times(records, context)
        for attention, seconds in times.items():
            pairs = zip(seconds, times["mha"], strict=True)
            median = statistics.median(seconds)
            summaries.append({
                "attention": attention,
                "context": context,
                "batch": batch,
                "median_seconds": median,
                "tokens_per_second": batch / median,
                "time_to_mha": statistics.median(one / other for one, other in pairs),
                "cache_bytes_per_token": cache_bytes[attention],
                "weight_bytes": weight_bytes[attention],
            })  # fmt: skip
    return summaries


def _times(records: list[dict[str, Any]], context: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    for record in records:
        if record["labels"].get("context") == context:
            times.setdefault(record["labels"]["attention"], []).append(record["value"])
    return times


def _bytes_of(records: list[dict[str, Any]], metric: str) -> dict[str, float]:
    return {r["labels"]["attention"]: r["value"] for r in records if r["metric"] == metric}


def ratios(summaries: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the times in units of multi-head attention's, by batch size and context."""
    found: dict[str, dict[str, float]] = {}
    for row in summaries:
        place = f"batch_{row['batch']}_context_{row['context']}"
        found.setdefault(place, {})[row["attention"]] = row["time_to_mha"]
    return found


def longest_contexts(summaries: list[dict[str, Any]], memory_gib: int) -> dict[str, dict[str, int]]:
    """Return the longest contexts that fit, by batch size and attention."""
    found: dict[str, dict[str, int]] = {}
    for row in summaries:
        found.setdefault(f"batch_{row['batch']}", {})[row["attention"]] = longest_context(
            memory_gib * GIB, row["weight_bytes"], row["cache_bytes_per_token"], row["batch"]
        )
    return found


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it works")
    parser.add_argument("--rounds", type=positive, default=3, help="timed rounds")
    parser.add_argument("--contexts", type=positive, nargs="+", help="cached positions")
    parser.add_argument("--batches", type=positive, nargs="+", help="sequences at once")
    parser.add_argument(
        "--memory-gib", type=positive, default=80,
        help="for weights and caches, to find the longest context",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print its ratios and write everything as JSON."""
    parser = _parser()
    options = parse_options(parser, arguments)
    size = SIZES["small" if options.small else options.device]
    contexts = options.contexts or size["contexts"]
    specs = contenders(size)
    torch.manual_seed(0)
    summaries = [
        row
        for batch in options.batches or size["batches"]
        for row in measure_batch(specs, batch, contexts, options.rounds, options.device)
    ]
    report = {
        "ratios": ratios(summaries),
        "longest_context": longest_contexts(summaries, options.memory_gib),
        "decoding": summaries,
        "memory_gib": options.memory_gib,
        "parameters": {name: total_parameters(spec) for name, spec in specs.items()},
        "type": TYPES[options.device],
    }
    write_report(options, report)
    print(json.dumps({key: report[key] for key in ("ratios", "longest_context")}, indent=1))


if __name__ == "__main__":
    main()
