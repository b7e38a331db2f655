"""Throughput of reading batches beside that of training on them.

    python benchmarks/loading.py --output loading.json --device cuda

The batches are those of training: windows of tokens from memory-mapped shards, and images that lie
on the device as bytes and are normalised and augmented there. A training step reads a batch, passes
it forward and backward and steps AdamW; on a GPU under bfloat16 autocast. Both take turns, and the
number to compare is the ratio of their throughputs within a round: at 10, a step that waits for its
batch spends a tenth of its time on it.
"""

import io
import json
import statistics
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from harness.config.catalog import load_models
from harness.data import prepare
from harness.measurement.benchmark import benchmark_parser, parse_options, write_report
from harness.measurement.optimizer_step import WARMUP_ROUNDS, timed
from harness.training.tasks import Task, make_task

CONFIG = Path(__file__).parents[1] / "config"
# Batches that are read in a row: one alone takes little more than the clock.
READ = 10
IMAGES = 2000
TEXT_BYTES = 4_000_000
MODELS = {
    "cpu": {"language": "decoder_small", "images": "vit_tiny"},
    "cuda": {"language": "decoder_124m", "images": "vit_small"},
}
AUGMENTATION = {"flip": True, "translate": 4, "cutout": 0}
# Those of the scales `local` and `gpu`.
TRAINING = {
    "cpu": {
        "language": {"batch_size": 8, "sequence_length": 128},
        "images": {"batch_size": 32, "augmentation": AUGMENTATION},
    },
    "cuda": {
        "language": {"batch_size": 32, "sequence_length": 1024},
        "images": {"batch_size": 512, "augmentation": AUGMENTATION},
    },
}


def prepare_language(folder: Path) -> None:
    """Prepare the beginning of the standard library as bytes."""
    spec = {
        "kind": "text",
        "source": {"type": "python_standard_library"},
        "tokenizer": {"type": "bytes"},
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
        "maximum_bytes": TEXT_BYTES,
    }
    prepare(spec, folder / "language", "loading")


def prepare_images(folder: Path) -> None:
    """Prepare random images of CIFAR-10's size: what they show takes no time."""
    generator = np.random.default_rng(0)
    (folder / "source").mkdir()
    for split in ("train", "test"):
        rows = []
        for pixels_HWC in generator.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8):
            buffer = io.BytesIO()
            Image.fromarray(pixels_HWC).save(buffer, "png")
            rows.append({"bytes": buffer.getvalue()})
        table = pyarrow.table({"img": rows, "label": generator.integers(0, 10, IMAGES)})
        pyarrow.parquet.write_table(table, folder / "source" / f"{split}.parquet")
    source = {"type": "parquet", "path": str((folder / "source").resolve()),
              "image_column": "img", "label_column": "label"}  # fmt: skip
    spec = {"kind": "images", "source": source, "validation_fraction": 0.1, "test_fraction": None}
    prepare(spec, folder / "images", "loading")


def training_step(task: Task, device: torch.device) -> Callable[[], None]:
    """Return a function that trains one step on the next batch."""
    torch.manual_seed(0)
    model = task.build().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    steps = count()

    def step() -> None:
        inputs, targets = task.batch(next(steps))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            objective, _ = task.objective(model, inputs, targets, 0.0)
        objective.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def reading(task: Task) -> Callable[[], None]:
    """Return a function that reads the next ``READ`` batches."""
    steps = count()

    def read() -> None:
        for _ in range(READ):
            task.batch(next(steps))

    return read


def measure(task: Task, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return median throughputs (examples/s) and the median ratio within a round."""
    read, train = reading(task), training_step(task, device)
    rates: dict[str, list[float]] = {"reading": [], "training": []}
    for round_ in range(-WARMUP_ROUNDS, rounds):
        reading_seconds, training_seconds = timed(read, device) / READ, timed(train, device)
        if round_ >= 0:
            rates["reading"].append(task.examples_per_step / reading_seconds)
            rates["training"].append(task.examples_per_step / training_seconds)
    ratios = [a / b for a, b in zip(rates["reading"], rates["training"], strict=True)]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"ratio": statistics.median(ratios), "examples_per_second": medians}


def specification(kind: str, device: str, model: str) -> dict[str, Any]:
    """Return what a task of ``kind`` reads of a training specification."""
    chosen = load_models(CONFIG / "models.yaml")[model].model_dump()
    common = {"accumulation": 1, "attend_across_documents": True, "label_smoothing": 0.0}
    training = common | TRAINING[device][kind]
    return {"task": kind, "model": chosen, "seed": 0, "training": training}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print the ratios and write everything as JSON."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds")
    options = parse_options(parser, arguments)
    device, models = torch.device(options.device), MODELS[options.device]
    tasks = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        prepare_language(folder)
        prepare_images(folder)
        for kind, model in models.items():
            task = make_task(specification(kind, options.device, model), folder / kind, device)
            tasks[kind] = measure(task, options.rounds, device)
    report = {
        "tasks": tasks,
        "models": models,
        "training": TRAINING[options.device],
    }
    write_report(options, report)
    print(json.dumps({kind: {"ratio": entry["ratio"]} for kind, entry in tasks.items()}, indent=1))


if __name__ == "__main__":
    main()
