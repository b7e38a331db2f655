"""Activations of a pipeline stage, and how many micro-batches of it a rank holds at once."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.config.decoder_schema import DecoderSpec, MultiHeadLatentAttention
from harness.models.counts import Part
from harness.systems.memory.cases import SCALE_BYTES, SCALED_VALUES, TrainingCase
from harness.systems.memory.parameters import Piece
from harness.systems.memory.saved_storages import Role
from harness.systems.memory.saved_tensors import Saved, saved_for_backward
from harness.systems.pipeline.programs import Operation

# Bytes by part.
Parts = dict[Part, float]
# Bits in which DeepSeek-V3 stores activations (arXiv 2412.19437, section 3.3.3).
BITS: dict[Role, int] = {
    "norm_output": 8,
    "linear_input": 8,
    "swiglu_input": 8,
    "swiglu_output": 8,
    "attention_output": 12,
}
BFLOAT16_BYTES, BITS_PER_BYTE = 2, 8


@dataclass
class Activations:
    """Bytes of a stage and one micro-batch, by part.

    Attributes:
        kept: From the forward pass until the backward pass ends.
        recomputed: Of the largest piece that is recomputed at once, while it is.
    """

    kept: Parts = field(default_factory=dict)
    recomputed: Parts = field(default_factory=dict)


def activations_of(spec: DecoderSpec, pieces: Iterable[Piece], case: TrainingCase) -> Activations:
    """Return the activations of a stage on one device.

    Tensor parallelism is taken with sequence parallelism (Korthikanti et al., arXiv 2205.05198,
    section 4.2.2), which divides all activations by its size. Each device routes as many tokens
    to experts elsewhere as it gets from there.

    Args:
        spec: The model.
        pieces: Of the stage.
        case: The training step.
    """
    stored = case.storage.activations
    dtype = "float32" if stored == "float32" else "bfloat16"
    every = saved_for_backward(spec, case.micro_batch, case.sequence_length, dtype)
    total = Activations()
    for piece in pieces:
        saved = [row for row in every if row.place == piece.place]
        one = _of_piece(spec, saved, case)
        _add(total.kept, one.kept)
        if sum(one.recomputed.values()) > sum(total.recomputed.values()):
            total.recomputed = one.recomputed
    return total


def _of_piece(spec: DecoderSpec, saved: Sequence[Saved], case: TrainingCase) -> Activations:
    result = Activations()
    for row in saved:
        if row.role == "expert_output" and not case.expert_outputs:
            continue
        share = _kept_share(spec, row, case)
        size = _stored_bytes(row, case) / case.layout.tensor
        _add(result.kept, {row.part: share * size})
        _add(result.recomputed, {row.part: (1 - share) * size})
    return result


def _kept_share(spec: DecoderSpec, row: Saved, case: TrainingCase) -> float:
    """Return the share of these tensors that is not recomputed."""
    if case.recomputation == "none" or row.place in ("embedding", "head"):
        return 1.0
    if case.recomputation == "selective":
        again = {"norm_output", "swiglu_output"}
        if isinstance(spec.attention, MultiHeadLatentAttention):
            again.add("attention_input")
        return float(row.role not in again)
    return _input_share(spec, row, case)


def _input_share(spec: DecoderSpec, row: Saved, case: TrainingCase) -> float:
    """Return the share of a layer's input in these tensors: all that whole recomputation keeps."""
    tokens = case.micro_batch * case.sequence_length
    inputs = tokens * spec.hidden_size * row.itemsize
    if row.place == "prediction":
        # A module keeps the state before it and an embedding, which its norms read.
        depth = spec.prediction.depth if spec.prediction else 0
        inputs *= 2 * depth
        holds = row.role == "other" and row.part == "prediction"
    else:
        holds = row.role == "other" and row.part == "norms"
    of_stream = row.itemsize == (4 if case.storage.activations == "float32" else BFLOAT16_BYTES)
    return min(1.0, inputs / row.nbytes) if holds and of_stream else 0.0


def _stored_bytes(row: Saved, case: TrainingCase) -> float:
    if case.storage.activations != "fp8" or row.itemsize != BFLOAT16_BYTES or row.role not in BITS:
        return row.nbytes
    values = row.nbytes / row.itemsize
    return values * (BITS[row.role] / BITS_PER_BYTE + SCALE_BYTES / SCALED_VALUES)


def peak(operations: Sequence[Operation], stages: Mapping[int, Activations]) -> Parts:
    """Return the activations of a rank, by part, when it holds most.

    A micro-batch is held as ``peak_activations`` of the pipeline says; during a backward pass
    something is recomputed besides.

    Args:
        operations: Of the rank, in order.
        stages: The activations of every stage that the rank has.
    """
    kept = {stage: sum(held.kept.values()) for stage, held in stages.items()}
    again = {stage: sum(held.recomputed.values()) for stage, held in stages.items()}
    held: Counter[int] = Counter()
    # How many micro-batches of each stage, and which stages recompute, at the fullest moment.
    fullest, most = (Counter[int](), Counter[int]()), -1.0
    for operation in operations:
        held.update(task.stage for task in operation.tasks if task.kind == "forward")
        working = Counter(task.stage for task in operation.tasks
                          if task.kind in ("backward", "backward_input"))  # fmt: skip
        now = sum(kept[stage] * times for stage, times in held.items())
        now += sum(again[stage] * times for stage, times in working.items())
        if now > most:
            fullest, most = (held.copy(), working), now
        held.subtract(task.stage for task in operation.tasks
                      if task.kind in ("backward", "backward_weight"))  # fmt: skip
    parts: Parts = {}
    for stage, times in fullest[0].items():
        _add(parts, stages[stage].kept, times)
    for stage, times in fullest[1].items():
        _add(parts, stages[stage].recomputed, times)
    return parts


def _add(total: Parts, more: Parts, times: float = 1) -> None:
    for part, size in more.items():
        total[part] = total.get(part, 0.0) + times * size
