"""Training throughput of the harness beside a plain loop over the same Llama of `transformers`.

    python benchmarks/training.py --output training.json
    python benchmarks/training.py --output training.json --device cuda

The harness trains as it does in every run: batches from shards, schedule, clipping, its own
decoder and loss. The plain loop is the one that the documentation of `transformers` shows:
`LlamaForCausalLM` with `labels`, fused AdamW, clipping, the same sizes, batch and precision, and
batches that are on the device already. On a GPU it is nanoGPT's: bfloat16 autocast and
`torch.compile` of the whole model. Both start from the same weights, both use fused AdamW, and
take turns; the number to compare is the ratio of tokens per second within a round.

Utilization counts the operations of `harness.models.flops`: forward and backward, causal attention,
nothing twice, over the dense bfloat16 peak. Unknown GPUs have none.
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.config.base import validate
from harness.config.catalog import load_models
from harness.config.decoder_schema import DecoderSpec
from harness.config.experiment_schema import Training
from harness.data.text import prepare_text
from harness.interchange.weights import publish
from harness.interchange.write_config import write_config
from harness.measurement.benchmark import benchmark_parser, parse_options, write_report
from harness.measurement.optimizer_step import timed
from harness.torchvision_import import import_torchvision
from harness.training.compilation import set_float32_products
from harness.training.step import TrainingStep
from harness.training.utilization import bfloat16_peak, flops_per_example, utilization

MODELS = Path(__file__).parents[1] / "config" / "models.yaml"
LEARNING_RATE = 1e-3
ADAMW = {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "fused": True}
# Optimizer steps of one contender before it is the other's turn, and turns that are not timed.
STEPS, WARMUP = 10, 2
# The shapes of scale `smoke`, and those that one GPU trains.
SIZES: dict[str, list[dict[str, Any]]] = {
    "cpu": [{"model": "decoder_tiny", "batch_size": 8, "sequence_length": 128,
             "vocab_size": 512, "accumulation": 1}],
    "cuda": [
        {"model": "decoder_124m", "batch_size": 64, "sequence_length": 1024,
         "vocab_size": 50304, "accumulation": 2},
        {"model": "decoder_1b", "batch_size": 16, "sequence_length": 2048,
         "vocab_size": 50304, "accumulation": 4},
    ],
}  # fmt: skip


def specification(size: dict[str, Any], device: str) -> dict[str, Any]:
    """Return the resolved specification of a run of ``size``."""
    model = load_models(MODELS)[size["model"]].model_copy(update={"vocab_size": size["vocab_size"]})
    training = {
        # Never reached: the learning rate stays at its peak.
        "steps": 1_000_000,
        "evaluation_interval": 1_000_000,
        "schedule": {"kind": "warmup_stable_decay", "warmup": 0},
        "gradient_clip": 1.0,
        "precision": "bfloat16" if device == "cuda" else "float32",
        **{key: size[key] for key in ("batch_size", "sequence_length", "accumulation")},
    }
    return {
        "task": "language",
        "compile": device == "cuda",
        "model": model.model_dump(),
        "optimizer": {"class": "torch.optim.AdamW", "parameters": "all", "arguments": ADAMW,
                      "companion": None, "calibration": None},
        "training": validate(Training, training, "training").model_dump(),
        "learning_rate": LEARNING_RATE,
        "seed": 0,
    }  # fmt: skip


def prepare_data(folder: Path, examples: int, length: int) -> Path:
    """Return a prepared dataset of random bytes with at least ``examples`` windows."""
    source = folder / "source"
    source.mkdir(parents=True)
    letters = np.random.default_rng(0).integers(97, 123, (64, 1 + 2 * examples * length // 64))
    for index, text in enumerate(letters.astype(np.uint8)):
        (source / f"{index}.txt").write_bytes(text.tobytes())
    spec = {
        "kind": "text",
        "source": {"type": "local", "path": str(source), "column": "text"},
        "tokenizer": {"type": "bytes"},
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
        "maximum_bytes": None,
    }
    prepare_text(spec, folder / "data", "benchmark")
    return folder / "data"


def plain_model(spec: dict[str, Any], ours: nn.Module) -> nn.Module:
    """Return the Llama of `transformers` with the weights of the harness's decoder."""
    # transformers imports torchvision by itself.
    import_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    decoder = validate(DecoderSpec, spec["model"], "model")
    assert decoder.vocab_size is not None
    config = LlamaConfig(**write_config(decoder, decoder.vocab_size, "benchmark"))
    model = LlamaForCausalLM(config).to(next(ours.parameters()).device)
    model.load_state_dict(publish(decoder, ours.state_dict()), strict=False)
    model.tie_weights()
    return model


def plain_loop(
    model: nn.Module, spec: dict[str, Any], batches: list[torch.Tensor], device: torch.device
) -> Callable[[], None]:
    """Return a function that takes one optimizer step of the plain loop."""
    parts = spec["training"]["accumulation"]
    lower = spec["training"]["precision"] == "bfloat16"
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, **ADAMW)
    run = torch.compile(model) if spec["compile"] else model
    taken = iter(range(10**9))

    def step() -> None:
        tokens = batches[next(taken) % len(batches)]
        for part in tokens.chunk(parts):
            with torch.autocast(device.type, torch.bfloat16, enabled=lower):
                loss = run(input_ids=part, labels=part).loss
            (loss / parts).backward()
        nn.utils.clip_grad_norm_(model.parameters(), spec["training"]["gradient_clip"])
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(size: dict[str, Any], rounds: int, device: torch.device) -> dict[str, Any]:
    """Return tokens per second, their ratio within a round, and utilization, of one size."""
    set_float32_products()
    spec = specification(size, device.type)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(Path(folder), 8 * size["batch_size"], size["sequence_length"])
        ours = TrainingStep(spec, data, device, None)
        theirs = plain_model(spec, ours.model)
        difference = _difference(ours, theirs)
        batches = [ours.task.batch(index)[0].contiguous() for index in range(8)]
        taken = iter(range(10**9))
        steps = {
            "harness": lambda: ours.take(next(taken)),
            "transformers": plain_loop(theirs, spec, batches, device),
        }
        rates = _rates(steps, ours.task.examples_per_step, rounds, device)
        ours.close()
        flops = flops_per_example(spec, ours.task.manifest)
    ratios = [a / b for a, b in zip(rates["harness"], rates["transformers"], strict=True)]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    peak = bfloat16_peak(device)
    return {
        **size,
        "threads": torch.get_num_threads(),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "tokens_per_second": medians,
        "utilization": {
            name: None if flops is None else utilization(spec, flops * rate, peak)
            for name, rate in medians.items()
        },
        "loss_difference": difference,
    }


@torch.no_grad()
def _difference(ours: TrainingStep, theirs: nn.Module) -> float:
    """Return by how much the losses of the same weights on the same tokens differ."""
    inputs, targets = (part[:2] for part in ours.task.batch(0))
    loss, _ = ours.task.objective(ours.model, inputs, targets, 0.0)
    tokens = torch.cat((inputs, targets[:, -1:]), dim=1)
    return abs(float(loss) - float(theirs(input_ids=tokens, labels=tokens).loss))


def _rates(
    steps: dict[str, Callable[[], object]], tokens: int, rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Return tokens per second of every contender by round."""

    def several(step: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(STEPS):
                step()

        return run

    rates: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-WARMUP, rounds):
        for name, step in steps.items():
            seconds = timed(several(step), device)
            if round_ >= 0:
                rates[name].append(STEPS * tokens / seconds)
    return rates


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print the ratios and write everything as JSON."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="timed turns of each contender")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of a CPU")
    options = parse_options(parser, arguments)
    if min(options.threads) < 1:
        parser.error(f"--threads: found {min(options.threads)}, expected at least 1")
    results = []
    for threads in options.threads if options.device == "cpu" else [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        for size in SIZES[options.device]:
            results.append(measure(size, options.rounds, torch.device(options.device)))
    report = {
        "results": results,
        "steps_per_round": STEPS,
        "threads": options.threads,
    }
    write_report(options, report)
    shown = ("model", "threads", "ratio", "tokens_per_second", "utilization")
    print(json.dumps([{key: result[key] for key in shown} for result in results], indent=1))


if __name__ == "__main__":
    main()
