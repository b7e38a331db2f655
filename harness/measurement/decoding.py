"""Time and memory of decoding one token, all attentions in turn in one process.

A step reads one token per sequence behind a full context. Its time grows with the bytes that it
reads, weights and cache, so models to compare are first given the same number of parameters. As in
`optimizer_step`, every round times each model once, and comparisons are ratios within a round.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from harness.config.decoder_schema import DecoderSpec, MultiHeadLatentAttention, SwiGLU
from harness.errors import UserError
from harness.measurement.energy import energy_of
from harness.measurement.optimizer_step import WARMUP_ROUNDS, timed
from harness.models.cache import Cache, CacheForm
from harness.models.counts import total_parameters
from harness.models.decoder import Decoder
from harness.records.record import record

# Steps of one timed sample; a GPU's step is too short to time alone.
STEPS_PER_SAMPLE = 8
# For which a step is repeated to measure its energy.
ENERGY_SECONDS = 2.0
# Feed-forward widths are multiples of it, as matrix units want them.
WIDTH_MULTIPLE = 8
# Parameters of models to compare differ by less than this share.
SIZE_TOLERANCE = 0.01


def equal_in_size(specs: Mapping[str, DecoderSpec], reference: str) -> dict[str, DecoderSpec]:
    """Return the models with feed-forwards as wide as gives all the parameters of one of them.

    Args:
        specs: Decoders by name, with SwiGLU.
        reference: Name of the one that stays as it is.
    """
    target = total_parameters(specs[reference])
    return {
        name: spec if name == reference else _resized(spec, target) for name, spec in specs.items()
    }


def _resized(spec: DecoderSpec, target: int) -> DecoderSpec:
    dense = spec.feed_forward
    assert isinstance(dense, SwiGLU), "only SwiGLU is resized"
    per_column = 3 * spec.hidden_size * spec.num_hidden_layers
    exact = dense.intermediate_size + (target - total_parameters(spec)) / per_column
    width = max(1, round(exact / WIDTH_MULTIPLE)) * WIDTH_MULTIPLE
    resized = spec.model_copy(update={"feed_forward": SwiGLU(intermediate_size=width)})
    found = total_parameters(resized)
    assert abs(found / target - 1) < SIZE_TOLERANCE, (
        f"{found} parameters with a feed-forward of {width}, expected about {target}"
    )
    return resized


def longest_context(
    memory: float, weight_bytes: float, cache_bytes_per_token: float, batch: int
) -> int:
    """Return the longest context whose cache fits beside the weights, 0 if none does.

    Args:
        memory: Bytes for weights and caches; activations are left out, they do not grow with it.
        weight_bytes: Of the model.
        cache_bytes_per_token: Of one sequence.
        batch: Sequences.
    """
    return max(0, int((memory - weight_bytes) // (batch * cache_bytes_per_token)))


@torch.no_grad()
def decode_speed(
    models: Mapping[str, DecoderSpec],
    contexts: Sequence[int],
    batch: int,
    rounds: int,
    device: str | torch.device,
    dtype: Literal["float32", "bfloat16"] = "float32",
    vocab_size: int | None = None,
) -> list[dict[str, Any]]:
    """Return time and energy per token, bytes of cache and of weights of every model, as records.

    Latent attention is measured in both forms of its cache, as NAME_naive and NAME_absorbed. Time
    is that of one step, in which every sequence of the batch gets one token; choosing the token is
    left out, and so are modules of multi-token prediction. On CUDA steps are replayed graphs, so a
    step must not depend on values, as that of mixtures does; there ``decode/energy_per_token`` is
    the whole GPU's for one token of one sequence, left out where the GPU does not count it.

    Args:
        models: Decoders by name.
        contexts: Positions that are cached before the step.
        batch: Sequences.
        rounds: Timed rounds, after untimed ones.
        device: Where models are built and timed.
        dtype: Of weights and caches.
        vocab_size: Tokens, for decoders without a size of their own.

    Raises:
        UserError: If a decoder is left without a vocabulary.
    """
    device = torch.device(device)
    capacity = max(contexts) + 1
    contenders = {
        name: (model, _filled(model.new_cache(batch, capacity, form=form)))
        for name, model, form in _contenders(models, vocab_size, device, dtype)
    }
    records = []
    for name, (model, cache) in contenders.items():
        weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
        records += [
            record(
                "decode/cache_bytes_per_token",
                cache.nbytes / (batch * capacity),
                "B",
                attention=name,
            ),
            record("decode/weight_bytes", weight_bytes, "B", attention=name),
        ]
    for context in contexts:
        samples = {
            name: _sample(model, cache, context, batch, device)
            for name, (model, cache) in contenders.items()
        }
        for round_ in range(-WARMUP_ROUNDS, rounds):
            for name, sample in samples.items():
                seconds = timed(sample, device) / STEPS_PER_SAMPLE
                if round_ >= 0:
                    records.append(record("decode/time_per_token", seconds, "s", attention=name,
                                           context=context, batch=batch, round=round_))  # fmt: skip
        if device.type == "cuda":
            records += _energy(samples, device, context, batch)
    return records


def _energy(
    samples: Mapping[str, Callable[[], None]], device: torch.device, context: int, batch: int
) -> Iterator[dict[str, Any]]:
    for name, sample in samples.items():
        joules = energy_of(sample, device, ENERGY_SECONDS)
        if joules is not None:
            per_token = joules / (STEPS_PER_SAMPLE * batch)
            yield record("decode/energy_per_token", per_token, "J",
                         attention=name, context=context, batch=batch)  # fmt: skip


def _contenders(
    models: Mapping[str, DecoderSpec], vocab_size: int | None, device: torch.device, dtype: str
) -> Iterator[tuple[str, Decoder, CacheForm]]:
    for name, spec in models.items():
        tokens = spec.vocab_size or vocab_size
        if tokens is None:
            raise UserError(f"models: {name}: vocab_size: found none, expected a number of tokens")
        main = spec.model_copy(update={"prediction": None})
        with device:
            model = Decoder(main, tokens).to(getattr(torch, dtype)).eval()
        if isinstance(spec.attention, MultiHeadLatentAttention):
            for form in get_args(CacheForm):
                yield f"{name}_{form}", model, form
        else:
            yield name, model, "naive"


def _filled(cache: Cache) -> Cache:
    for layer in cache.layers:
        for tensor in layer.values():
            tensor.normal_()
    return cache


def _sample(
    model: Decoder, cache: Cache, context: int, batch: int, device: torch.device
) -> Callable[[], None]:
    """Return what is timed: the same step several times."""
    tokens_B1 = torch.zeros(batch, 1, dtype=torch.long, device=device)

    def step() -> None:
        cache.length = context
        model(tokens_B1, cache)

    replay = _captured(step) if device.type == "cuda" else step

    def sample() -> None:
        for _ in range(STEPS_PER_SAMPLE):
            replay()

    return sample


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """Return the replay of a CUDA graph of ``step``: without it, launches take most of the time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Libraries allocate on first use, which a capture may not.
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(keeps: Callable[[], None] = step) -> None:
        # What the step reads has to live as long as the graph, which reads it where it was.
        graph.replay()

    return replay
