"""Time of one optimizer step beside its peers, all in turn in one process.

    python benchmarks/optimizer_step.py --output optimizer_step.json

Only hidden matrices are stepped, those that Muon and ROOT are for. All numbers to compare are
ratios within a round. Two kinds of gradients: Gaussian, as is usual in benchmarks, and a few strong
directions in noise, as momentum in training has them, for which bfloat16 products need more care.
All layers of a model have the same shapes, so by default a CPU times some of them.
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.config.catalog import load_models, load_optimizers
from harness.errors import closest
from harness.measurement.benchmark import benchmark_parser, parse_options, write_report
from harness.measurement.optimizer_step import (
    gaussian_gradient,
    time_optimizer_steps,
    timed,
    with_gradients,
)
from harness.models import build_model
from harness.optimizers import build_optimizer, route_parameters
from harness.optimizers.matrices import as_matrices

CONFIG = Path(__file__).parents[1] / "config"
# Model and how many of its layers are timed.
DEFAULT_MODELS = {
    "cpu": {"decoder_10m": 6, "decoder_124m": 2},
    "cuda": {"decoder_124m": 12, "decoder_1b": 16},
}
# Any coefficients do: the time of a step does not depend on them.
TRIPLE = (2.909, -3.810, 1.860)
LEARNING_RATE = 1e-3
NEWTON_SCHULZ_STEPS = 5
PEAK_SIDE = 2048
STRONG_DIRECTIONS = 16


def strong_directions_gradient(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Return a few strong directions in noise: 16 hold nine tenths of the energy."""
    *count, rows, columns = as_matrices(parameter).shape

    def normal(*sides: int) -> Tensor:
        return torch.empty(*count, *sides, device=parameter.device).normal_(generator=generator)

    rank = min(STRONG_DIRECTIONS, rows, columns)
    strong = normal(rows, rank) @ normal(rank, columns) / math.sqrt(rank)
    return (strong + 0.3 * normal(rows, columns)).view_as(parameter)


GRADIENTS = {"gaussian": gaussian_gradient, "strong_directions": strong_directions_gradient}


class HiddenMatrices(nn.Module):
    """The hidden matrices of a model's first layers."""

    companion_parameters = ()

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        named = dict(model.named_parameters())
        routes = route_parameters(model)
        self.matrices = nn.ParameterList(
            named[name] for name, route in routes.items() if route == "matrix"
        )


def builders(matrices: HiddenMatrices) -> dict[str, Callable[[nn.Module], Any]]:
    """Return builders by name: ours from their configuration entries, then the peers."""
    entries = load_optimizers(CONFIG / "optimizers.yaml")
    shapes = {tuple(sorted(as_matrices(p).shape[-2:])) for p in matrices.parameters()}
    coefficients = dict.fromkeys(shapes, TRIPLE)

    def ours(name: str, **arguments: Any) -> Callable[[nn.Module], Any]:
        entry = entries[name]
        spec = {"class": entry.class_, "parameters": "all", "companion": None,
                "arguments": entry.arguments | arguments,
                "calibration": entry.calibration}  # fmt: skip
        return lambda model: build_optimizer(spec, model, LEARNING_RATE, coefficients)

    found = {
        "torch_muon": ours("torch_muon"),
        "muon": ours("muon"),
        # At Muon's precision: what is compared is the cost of the filter and the coefficients.
        "root": ours("root", dtype="bfloat16"),
        "adamw_fused": ours("adamw", fused=True),
    }
    return found | _peers(next(matrices.parameters()).device)


def _peers(device: torch.device) -> dict[str, Callable[[nn.Module], Any]]:
    """Return builders of other packages' Muon, of those that are installed."""
    found: dict[str, Callable[[nn.Module], Any]] = {}
    if find_spec("pytorch_optimizer") is not None:
        import pytorch_optimizer

        methods = {"": "newton_schulz"}
        if device.type == "cuda":
            # Half precision, which CPUs emulate: a hundred times slower there.
            methods["gram_"] = "gram_newton_schulz"
        for name, method in methods.items():
            found[f"pytorch_optimizer_{name}muon"] = lambda model, method=method: (
                pytorch_optimizer.Muon(
                    [{"params": list(model.parameters()), "use_muon": True}],
                    lr=LEARNING_RATE, ns_method=method,
                )
            )  # fmt: skip
    if find_spec("heavyball") is not None:
        import heavyball

        found["heavyball_muon"] = lambda model: heavyball.Muon(model.parameters(), lr=LEARNING_RATE)
    return found


def polynomial_operations(matrices: HiddenMatrices) -> float:
    """Return the operations of the plain iteration, three products a step.

    2 M^2 N for X X^T, 2 M^3 for its square, 2 M^2 N for the last product, of sides M <= N.
    """
    total = 0
    for parameter in matrices.parameters():
        *count, rows, columns = as_matrices(parameter).shape
        small, large = sorted((rows, columns))
        total += math.prod(count) * NEWTON_SCHULZ_STEPS * (4 * small**2 * large + 2 * small**3)
    return float(total)


def measured_peak(device: torch.device) -> float:
    """Return the best rate (operations/s) of square bfloat16 products."""
    matrix = torch.randn(PEAK_SIDE, PEAK_SIDE, device=device).bfloat16()
    best = min(timed(lambda: matrix @ matrix, device) for _ in range(10))
    return 2 * PEAK_SIDE**3 / best


def peak_step_memory(step: Callable[[], None], device: torch.device) -> int:
    """Return the most bytes that one step holds beyond what it started with."""
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step()
    # The public event list leaves out single allocations.
    events = profiler.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def largest_batch_bytes(matrices: HiddenMatrices) -> int:
    """Return the size of all gradients of the shape that takes the most memory together."""
    sizes: dict[Any, int] = {}
    for parameter in matrices.parameters():
        sizes[parameter.shape] = sizes.get(parameter.shape, 0) + parameter.nbytes
    return max(sizes.values())


def measure_model(
    name: str, layers: int, rounds: int, device: torch.device, peak: float
) -> dict[str, Any]:
    """Return medians, ratios and memory of one model for each kind of gradient."""
    spec = load_models(CONFIG / "models.yaml")[name]
    timed_share = layers / spec.num_hidden_layers
    torch.manual_seed(0)
    model = build_model(spec.model_copy(update={"num_hidden_layers": layers}), vocab_size=257)
    matrices = HiddenMatrices(model).to(device)
    built = builders(matrices)
    result: dict[str, Any] = {"layers": layers}
    for kind, draw in GRADIENTS.items():
        records = time_optimizer_steps(built, matrices, rounds, draw)
        times = {
            optimizer: [r["value"] for r in records if r["optimizer"] == optimizer]
            for optimizer in built
        }
        medians = {optimizer: statistics.median(values) for optimizer, values in times.items()}
        rates = {
            optimizer: polynomial_operations(matrices) / median / peak
            for optimizer, median in medians.items() if optimizer != "adamw_fused"
        }  # fmt: skip
        result[kind] = {
            "median_seconds": medians,
            "fraction_of_measured_peak": rates,
            "ratios": _ratios(times),
        }
    result["memory"] = {
        # Of the whole model; one step on a CPU needs as much for any number of layers.
        "largest_batch_bytes": round(largest_batch_bytes(matrices) / timed_share),
        "peak_step_bytes": {
            optimizer: peak_step_memory(built[optimizer](with_gradients(matrices)).step, device)
            for optimizer in ("adamw_fused", "torch_muon", "muon", "root")
        },
    }
    return result


def _ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """Return medians over rounds of the ratios that matter."""
    pairs = [("root", "muon"), ("muon", "adamw_fused")]
    pairs += [("muon", peer) for peer in times if peer.endswith("_muon")]
    return {
        f"{one}/{other}": statistics.median(
            a / b for a, b in zip(times[one], times[other], strict=True)
        )
        for one, other in pairs
    }


def overall(models: dict[str, Any], kind: str) -> dict[str, float]:
    """Return the geometric means of the ratios over the models."""
    names = next(iter(models.values()))[kind]["ratios"]
    return {
        name: statistics.geometric_mean(model[kind]["ratios"][name] for model in models.values())
        for name in names
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print its ratios and write everything as JSON."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    parser.add_argument("--models", nargs="+", help="names of config/models.yaml, all layers")
    options = parse_options(parser, arguments)
    device = torch.device(options.device)
    chosen = DEFAULT_MODELS[options.device]
    if options.models:
        entries = load_models(CONFIG / "models.yaml")
        known = {name: spec for name, spec in entries.items() if spec.family == "decoder"}
        for name in options.models:
            if name not in known:
                parser.error(f"--models: found '{name}'{closest(name, known)}")
        chosen = {name: known[name].num_hidden_layers for name in options.models}
    peak = measured_peak(device)
    models = {
        name: measure_model(name, layers, options.rounds, device, peak)
        for name, layers in chosen.items()
    }
    report = {
        "ratios": overall(models, "gaussian"),
        "ratios_strong_directions": overall(models, "strong_directions"),
        "models": models,
        "measured_peak_operations_per_second": peak,
    }
    write_report(options, report)
    print(json.dumps({key: report[key] for key in report if key.startswith("ratios")}, indent=1))


if __name__ == "__main__":
    main()
