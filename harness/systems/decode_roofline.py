"""How fast a model can decode by what it reads from memory and computes: a roofline.

Williams, Waterman and Patterson, CACM 2009: a step takes no less than its bytes over the bandwidth
and its operations over the peak. Every step reads the weights that its tokens use once, whatever
their number, and the cache of every sequence. Activations, network and launches are for free.
"""

from dataclasses import dataclass

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from harness.config.base import Spec
from harness.config.decoder_schema import DecoderSpec, MixtureOfExperts, MultiHeadLatentAttention
from harness.models.counts import (
    NOTHING,
    Count,
    cached_elements,
    count_parameters,
    matrix_parameters,
)
from harness.systems.cache_costs import served_content

GIGA, TERA = 1e9, 1e12


class Storage(Spec):
    """Bytes of what is read."""

    weight: PositiveFloat = Field(description="per parameter, scales included")
    cache: PositiveFloat = Field(description="per cached element")


class Load(Spec):
    """What is decoded together."""

    batch: PositiveInt = Field(description="sequences")
    context: NonNegativeInt = Field(description="tokens that each of them has in the cache")


class Device(Spec):
    """Where a model is decoded. Its memory has one bandwidth and is as large as it needs to be."""

    bandwidth: PositiveFloat = Field(description="GB/s")
    peak_tflops: PositiveFloat | None = Field(None, description="none: computation is for free")

    @property
    def ridge(self) -> float | None:
        """Operations per byte from which computation limits."""
        return None if self.peak_tflops is None else self.peak_tflops * TERA / self.bandwidth / GIGA


@dataclass(frozen=True)
class Work:
    """What a step reads and computes.

    Attributes:
        weights: Bytes of weights but those of routed experts.
        experts: Bytes of routed experts; those of a draft include the rest of its module.
        cache: Bytes of keys and values, or of latents.
        flops: Operations.
    """

    weights: float
    experts: float
    cache: float
    flops: float

    @property
    def read(self) -> float:
        """All bytes."""
        return self.weights + self.experts + self.cache

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.read

    def seconds(self, device: Device) -> float:
        """Return the least time of the step."""
        memory = self.read / (device.bandwidth * GIGA)
        if device.peak_tflops is None:
            return memory
        return max(memory, self.flops / (device.peak_tflops * TERA))


def touched_experts(experts: int, chosen: int, tokens: int) -> float:
    """Return the mean number of experts that some of ``tokens`` use, all choices being equal.

    Each token leaves an expert out with probability ``1 - chosen / experts``, independently of the
    others; the mean is linear in the experts.
    """
    return float(experts * (1 - (1 - chosen / experts) ** tokens))


def decode_step(spec: DecoderSpec, storage: Storage, load: Load, tokens: int = 1) -> Work:
    """Return what one step of the main model takes.

    Attention over the cache is counted as it is served: latent attention in the absorbed form,
    where scores and sums are as wide as the latent and the up-projections are applied to queries
    and outputs. The lookup of embeddings is left out, and the cache of a sequence is read once.

    Args:
        spec: A decoder with a vocabulary of its own.
        storage: Bytes of weights and cache.
        load: Sequences and their contexts.
        tokens: Of every sequence in a step, more than one where drafted tokens are verified.
    """
    parts = count_parameters(spec)
    experts = parts.pop("experts", NOTHING)
    del parts["prediction"]
    together = tokens * load.batch
    attention = spec.num_hidden_layers * attention_flops(spec, load.context)
    return Work(
        weights=storage.weight * sum(count.active for count in parts.values()),
        experts=storage.weight * _touched(spec, experts, together),
        cache=spec.num_hidden_layers * _cache(spec, storage, load),
        flops=together * (2 * matrix_parameters(spec) + attention),
    )


def draft_step(spec: DecoderSpec, storage: Storage, load: Load) -> Work:
    """Return what drafting one token per sequence takes: a module and another pass of the head.

    Args:
        spec: A decoder with multi-token prediction.
        storage: Bytes of weights and cache.
        load: Sequences and their contexts.
    """
    assert spec.prediction is not None, "a model without multi-token prediction drafts nothing"
    parts, depth = count_parameters(spec), spec.prediction.depth
    module, head = parts["prediction"], parts["head"]
    per_token = 2 * (module.matrices / depth + head.matrices) + attention_flops(spec, load.context)
    return Work(
        weights=storage.weight * head.active,
        experts=storage.weight * _touched(spec, module, load.batch) / depth,
        cache=_cache(spec, storage, load),
        flops=load.batch * per_token,
    )


def _cache(spec: DecoderSpec, storage: Storage, load: Load) -> float:
    """Return the bytes that a layer reads of the cache."""
    return storage.cache * load.batch * load.context * cached_elements(spec, served_content(spec))


def _touched(spec: DecoderSpec, count: Count, tokens: int) -> float:
    """Return the mean parameters that ``tokens`` use of a part with routed experts or without."""
    moe = spec.feed_forward
    if not isinstance(moe, MixtureOfExperts) or moe.num_experts_per_tok == moe.n_routed_experts:
        return count.active
    experts, chosen = moe.n_routed_experts, moe.num_experts_per_tok
    more = touched_experts(experts, chosen, tokens) - chosen
    return count.active + (count.total - count.active) * more / (experts - chosen)


def attention_flops(spec: DecoderSpec, context: int) -> float:
    """Return the operations of one layer in which one token attends to ``context`` others."""
    options = spec.attention
    widths = 2 * spec.head_dim
    if isinstance(options, MultiHeadLatentAttention):
        widths = options.kv_lora_rank + options.qk_rope_head_dim + options.kv_lora_rank
    return 2 * context * options.num_attention_heads * widths
