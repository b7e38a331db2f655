"""What memory is computed for: parallel layouts, types of what is stored, training and inference.

A layout is refused if the model cannot be cut that way.
"""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from harness.config.base import Spec
from harness.config.decoder_schema import DecoderSpec, GroupedQueryAttention, MixtureOfExperts
from harness.errors import UserError
from harness.systems.pipeline.programs import Program
from harness.systems.pipeline.schedules import INTERLEAVED, build

# DeepSeek-V3 stores activations and weights with a float32 scale per 128 values, weights per 128 x
# 128 (arXiv 2412.19437, section 3.3.2).
SCALED_VALUES, SCALE_BYTES = 128, 4


class Layout(Spec):
    """How many ways a model is cut: ``devices = pipeline * tensor * data``.

    Experts are spread over ``expert`` of the ``tensor * data`` devices of a pipeline rank, so that
    each is held by ``tensor * data / expert`` of them.
    """

    devices: PositiveInt
    pipeline: PositiveInt = Field(1, description="ranks that hold different layers")
    tensor: PositiveInt = Field(1, description="ways heads and feed-forwards are cut")
    data: PositiveInt = Field(1, description="copies of all that is not an expert")
    expert: PositiveInt = Field(1, description="ways the experts of a layer are spread")


class TrainingStorage(Spec):
    """Bytes per parameter of what training keeps, and the type of activations.

    ``fp8`` stores what the matrix products and SwiGLU read in E4M3 and the output of attention in
    E5M6, both with a float32 scale per 128 values (DeepSeek-V3, section 3.3.3); the rest is
    bfloat16.
    """

    weights: PositiveFloat
    gradients: PositiveFloat
    master_weights: NonNegativeFloat = Field(description="0: the weights themselves")
    moments: NonNegativeFloat = Field(description="all of the optimizer's, together")
    activations: Literal["float32", "bfloat16", "fp8"]


class TrainingCase(Spec):
    """A training step: the pipeline schedule decides how many micro-batches are held at once.

    ``selective`` recomputes RMSNorm and SwiGLU outputs and what the up-projections of latent
    attention make (DeepSeek-V3, sections 3.2.3 and 3.3.3), ``full`` whole layers from their input.
    ZeRO (arXiv 1910.02054) spreads over all devices of equal data-parallel content: optimizer
    states (1), gradients too (2), weights too (3).
    """

    model: str
    device_memory: PositiveFloat = Field(description="GB = 1e9 bytes of a device")
    layout: Layout
    schedule: str = "1f1b"
    virtual_stages: PositiveInt = Field(1, description="of interleaved 1F1B alone more")
    micro_batches: PositiveInt = Field(description="per step and pipeline")
    micro_batch: PositiveInt = Field(1, description="sequences")
    sequence_length: PositiveInt
    zero: Literal[0, 1, 2, 3] = 0
    recomputation: Literal["none", "selective", "full"] = "none"
    expert_outputs: bool = Field(
        True, description="kept for the gradient of routing weights, as our decoder does; false: "
        "weights are applied before the down-projection, which needs no outputs"
    )  # fmt: skip
    storage: TrainingStorage


class InferenceCase(Spec):
    """Serving: weights and cache. Experts may have copies, to even out their load."""

    model: str
    device_memory: PositiveFloat = Field(description="GB = 1e9 bytes of a device")
    layout: Layout
    weight_bytes: PositiveFloat = Field(description="per value of attention and feed-forward")
    other_weight_bytes: PositiveFloat = Field(2, description="embedding, head, router and norms")
    cache_bytes: PositiveFloat = Field(2, description="per cached value")
    batch: PositiveInt = Field(description="sequences of a tensor-parallel group")
    context: PositiveInt = Field(description="tokens of each that are cached")
    redundant_experts: NonNegativeInt = Field(0, description="copies, of every layer")
    shared_among_redundant: bool = Field(
        False, description="the shared experts are among these copies, not on every device"
    )
    prediction: bool = Field(False, description="whether multi-token prediction is loaded")


def program_of(case: TrainingCase, where: str) -> Program:
    """Return the schedule of ``case`` on as many ranks as its layout has.

    Raises:
        UserError: If there is no such schedule for these numbers.
    """
    ranks = case.layout.pipeline
    stages = 2 * ranks if case.schedule == "dualpipe_v" else ranks
    if case.schedule == INTERLEAVED and ranks == 1:
        raise UserError(f"{where}: schedule: found {INTERLEAVED}, layout.pipeline is 1; expected "
                        "1f1b, or more ranks")  # fmt: skip
    try:
        return build(case.schedule, stages, case.micro_batches, case.virtual_stages)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def check_layout(spec: DecoderSpec, layout: Layout, where: str, redundant: int = 0) -> None:
    """Refuse a layout that the model cannot be cut into.

    Args:
        spec: The model.
        layout: The layout.
        where: Start of the message.
        redundant: Copies of experts in every layer.

    Raises:
        UserError: One line: the key, what was found and the rule.
    """
    where = f"{where}.layout"
    product = layout.pipeline * layout.tensor * layout.data
    if layout.devices != product:
        raise UserError(f"{where}.devices: found {layout.devices}, expected pipeline * tensor * "
                        f"data = {product}")  # fmt: skip
    _check_tensor(spec, layout.tensor, where)
    moe = spec.feed_forward
    group = layout.tensor * layout.data
    if not isinstance(moe, MixtureOfExperts):
        if layout.expert > 1:
            raise UserError(f"{where}.expert: found {layout.expert}, the model has no experts; "
                            "expected 1")  # fmt: skip
        return
    _divides(layout.expert, group, f"{where}.expert", "tensor * data")
    experts = moe.n_routed_experts + redundant
    _divides(layout.expert, experts, f"{where}.expert", "n_routed_experts + redundant_experts"
             if redundant else "n_routed_experts")  # fmt: skip


def _check_tensor(spec: DecoderSpec, tensor: int, where: str) -> None:
    attention = spec.attention
    where = f"{where}.tensor"
    _divides(tensor, attention.num_attention_heads, where, "num_attention_heads")
    if isinstance(attention, GroupedQueryAttention):
        groups = attention.num_key_value_heads
        if groups % tensor and tensor % groups:
            raise UserError(f"{where}: found {tensor}, expected a divisor or a multiple of "
                            f"num_key_value_heads = {groups}")  # fmt: skip
    moe = spec.feed_forward
    if isinstance(moe, MixtureOfExperts):
        widths = {
            "intermediate_size": moe.intermediate_size if moe.first_k_dense_replace else None,
            "n_shared_experts * moe_intermediate_size":
                moe.n_shared_experts * moe.moe_intermediate_size,
        }  # fmt: skip
    else:
        widths = {"intermediate_size": moe.intermediate_size}
    for name, width in widths.items():
        if width:
            _divides(tensor, width, where, name)


def _divides(found: int, number: int, where: str, name: str) -> None:
    if number % found:
        nearest = min((d for d in range(1, number + 1) if number % d == 0),
                      key=lambda divisor: abs(divisor - found))  # fmt: skip
        raise UserError(f"{where}: found {found}, expected a divisor of {name} = {number} "
                        f"(nearest: {nearest})")  # fmt: skip
