"""Time of a mixture of experts beside a dense feed-forward with as much work per token.

    python benchmarks/mixture_step.py --output mixture_step.json --device cuda

One layer of each is stepped, forward and backward with float32 weights, on a GPU under bfloat16
autocast, as in training. The dense layer is as wide as the chosen and the shared experts together,
so that its ratio to the mixture is what gate, dispatch and many small products cost. Both take
turns, and the number to compare is the ratio within a round.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from harness.config.base import validate
from harness.config.decoder_schema import DecoderSpec
from harness.measurement.benchmark import benchmark_parser, parse_options, write_report
from harness.measurement.optimizer_step import WARMUP_ROUNDS, timed
from harness.models.experts import Weights, runs_grouped
from harness.models.feed_forward import FeedForward
from harness.models.mixture import Mixture

# DeepSeek-V3's way of balancing, whose cost is part of a step.
BALANCE = {"bias_update_rate": 0.001, "sequence_loss": 0.0001}


@dataclass(frozen=True)
class Size:
    """One layer and its batch."""

    hidden_size: int
    width: int
    experts: int
    chosen: int
    shared: int
    sequences: int
    positions: int

    @property
    def dense_width(self) -> int:
        """Width of the dense feed-forward with the work of the active experts."""
        return (self.chosen + self.shared) * self.width

    @property
    def operations(self) -> float:
        """Operations of one step of the dense layer: six per weight and token."""
        weights = 3 * self.hidden_size * self.dense_width
        return 6.0 * weights * self.sequences * self.positions

    def mixture(self) -> Mixture:
        """Return the mixture of experts."""
        moe = {
            "kind": "moe",
            "moe_intermediate_size": self.width,
            "n_routed_experts": self.experts,
            "num_experts_per_tok": self.chosen,
            "n_shared_experts": self.shared,
            "balance": BALANCE,
        }
        heads = {"kind": "gqa", "num_attention_heads": 1, "num_key_value_heads": 1}
        spec = {"family": "decoder", "hidden_size": self.hidden_size, "num_hidden_layers": 1,
                "attention": heads, "feed_forward": moe}  # fmt: skip
        return Mixture(validate(DecoderSpec, spec, "mixture_step"))

    def dense(self) -> FeedForward:
        """Return the dense feed-forward."""
        return FeedForward(self.hidden_size, self.dense_width, None)


SIZES = {
    "cpu": Size(256, 128, experts=16, chosen=4, shared=1, sequences=4, positions=256),
    # A layer of DeepSeek-V2-Lite.
    "cuda": Size(2048, 1408, experts=64, chosen=6, shared=2, sequences=8, positions=2048),
}


def prepare_step(layer: nn.Module, size: Size, device: torch.device) -> Callable[[], None]:
    """Return a function that runs ``layer`` forward and backward on a fixed batch."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (size.sequences, size.positions, size.hidden_size)
    x_BTD, gradient_BTD = (
        torch.empty(shape, device=device).normal_(generator=generator) for _ in range(2)
    )
    x_BTD.requires_grad_()
    lower = device.type == "cuda"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=lower):
            y_BTD = layer(x_BTD)
        outputs, gradients = [y_BTD], [gradient_BTD.to(y_BTD.dtype)]
        if isinstance(layer, Mixture):
            outputs.append(layer.balance_loss)
            gradients.append(torch.ones_like(layer.balance_loss))
        torch.autograd.backward(outputs, gradients)
        if isinstance(layer, Mixture):
            layer.after_step(0.0)
        layer.zero_grad(set_to_none=True)
        x_BTD.grad = None

    return step


def measure(size: Size, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return median times (s), their rates (operations/s) and the median ratio within a round."""
    torch.manual_seed(0)
    mixture = size.mixture().to(device)
    steps = {
        "dense": prepare_step(size.dense().to(device), size, device),
        "mixture": prepare_step(mixture, size, device),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-WARMUP_ROUNDS, rounds):
        for name, step in steps.items():
            seconds = timed(step, device)
            if round_ >= 0:
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [a / b for a, b in zip(times["mixture"], times["dense"], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "median_seconds": medians,
        "operations_per_second": {name: size.operations / value for name, value in medians.items()},
        "load": mixture.statistics(),
        "grouped_products": _grouped(mixture, device),
    }


def _grouped(mixture: Mixture, device: torch.device) -> bool:
    weights = Weights(mixture.gate, mixture.up, mixture.down)
    if device.type == "cuda":
        weights = Weights(*(weight.bfloat16() for weight in weights))
    return runs_grouped(weights.gate_EFD[0], weights)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print the ratio and write everything as JSON."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds")
    options = parse_options(parser, arguments)
    size, device = SIZES[options.device], torch.device(options.device)
    report = {
        **measure(size, options.rounds, device),
        "size": asdict(size) | {"dense_width": size.dense_width},
    }
    write_report(options, report)
    print(json.dumps({key: report[key] for key in ("ratio", "grouped_products")}, indent=1))


if __name__ == "__main__":
    main()
