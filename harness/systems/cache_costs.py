"""What a decoder caches of a token, in bytes: arXiv 2505.09343, table 1, and what it leaves out."""

import math
from collections.abc import Iterator

import torch

from harness.config.decoder_schema import DecoderSpec, MultiHeadLatentAttention
from harness.models.cache import CacheForm
from harness.models.counts import CacheContent, cached_elements
from harness.records.record import Record, record
from harness.systems.built import on_meta
from harness.systems.decoders import Models
from harness.systems.printed import Table, ratios

BFLOAT16_BYTES = 2
# FlashMLA's cache: the latent in E4M3 with a float32 scale per 128 values, the rotary key as it is.
FP8_SCALED_VALUES, FP8_SCALE_BYTES = 128, 4
# DeepSeek-V2 keeps 6 bits per element in service (arXiv 2405.04434, section 3.2.3).
SIX_BITS = 6 / 8
# Positions of the cache whose tensors are counted.
COUNTED_TOKENS = 128
FORMS: dict[CacheContent, CacheForm] = {"latent": "absorbed", "heads": "naive"}


def key_value_cache(models: Models, table: Table) -> Iterator[Record]:
    """Yield elements, bytes and ratios of the cache per token.

    ``content`` says what is cached (see ``cached_elements``), ``format`` in which numbers:
    bfloat16, fp8 in the layout of FlashMLA, 6_bit without scales. The ratios are of what each model
    caches in service, over the other model in bfloat16.

    Args:
        models: By name.
        table: Printed bytes per token.
    """
    bytes_of: dict[tuple[str, str], dict[str, float]] = {}
    for name, spec in models.items():
        yield from _elements(name, spec)
        for content, form, method, layer in _layer_bytes(spec):
            labels = {"content": content, "format": form, "method": method}
            value = spec.num_hidden_layers * layer
            yield record("cache/bytes_per_token_and_layer", layer, "B", model=name, **labels)
            yield record("cache/bytes_per_token", value, "B", model=name, **labels)
            if content == served_content(spec):
                bytes_of.setdefault((form, method), {})[name] = value
    bytes_of["bfloat16", "printed"] = table.printed
    for name, value in table.printed.items():
        content = served_content(models[name])
        yield record("cache/bytes_per_token", value, "B", model=name,
                     content=content, format="bfloat16", method="printed")  # fmt: skip
    for (form, method), values in bytes_of.items():
        for first, over, ratio in ratios(table, values, bytes_of["bfloat16", method]):
            yield record(
                "cache/ratio", ratio, "1", model=first, over=over, format=form, method=method
            )


def served_content(spec: DecoderSpec) -> CacheContent:
    """Return what a model caches in service."""
    return "latent" if isinstance(spec.attention, MultiHeadLatentAttention) else "heads"


def _contents(spec: DecoderSpec) -> tuple[CacheContent, ...]:
    latent = isinstance(spec.attention, MultiHeadLatentAttention)
    return ("latent", "heads", "multi_head") if latent else ("heads", "multi_head")


def _elements(name: str, spec: DecoderSpec) -> Iterator[Record]:
    for content in _contents(spec):
        elements = spec.num_hidden_layers * cached_elements(spec, content)
        yield record("cache/elements_per_token", elements, "1", model=name, content=content)


def _layer_bytes(spec: DecoderSpec) -> Iterator[tuple[str, str, str, float]]:
    """Yield content, format, method and bytes of all that a layer could cache of a token."""
    for content in _contents(spec):
        closed = cached_elements(spec, content) * BFLOAT16_BYTES
        yield content, "bfloat16", "closed_form", closed
        if content in FORMS:
            yield content, "bfloat16", "counted", _counted_bytes(spec, FORMS[content])
    if isinstance(spec.attention, MultiHeadLatentAttention):
        latent, rotary = spec.attention.kv_lora_rank, spec.attention.qk_rope_head_dim
        scales = math.ceil(latent / FP8_SCALED_VALUES) * FP8_SCALE_BYTES
        yield "latent", "fp8", "closed_form", latent + scales + rotary * BFLOAT16_BYTES
        yield "latent", "6_bit", "closed_form", (latent + rotary) * SIX_BITS


def _counted_bytes(spec: DecoderSpec, form: CacheForm) -> float:
    """Return the bytes per layer and token of a cache that the built model allocates."""
    cache = on_meta(spec).new_cache(1, COUNTED_TOKENS, form=form, dtype=torch.bfloat16)
    return cache.nbytes / COUNTED_TOKENS / spec.num_hidden_layers
