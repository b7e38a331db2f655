"""What every pipeline rank holds in a training step."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

from harness.config.decoder_schema import DecoderSpec
from harness.errors import UserError
from harness.models.counts import Part
from harness.systems.memory.activations import activations_of, peak
from harness.systems.memory.cases import Layout, TrainingCase, check_layout, program_of
from harness.systems.memory.parameters import (
    Cut,
    Group,
    Piece,
    local_share,
    needs_embedding_at_the_end,
    parameters,
    stages_of,
)
from harness.systems.pipeline.programs import Program

Kind = Literal["weights", "gradients", "master_weights", "moments", "activations", "cache"]
# Bytes of a device by part and kind.
Memory = dict[tuple[Part, Kind], float]
# The ZeRO stage from which a kind is spread over data-parallel devices (arXiv 1910.02054, fig. 1).
SPREAD_FROM: dict[Kind, int] = {"moments": 1, "master_weights": 1, "gradients": 2, "weights": 3}


class Rank(NamedTuple):
    """The stages of a pipeline rank, and on how many ranks each of them is."""

    stages: tuple[int, ...]
    copies: dict[int, int]


def training_memory(spec: DecoderSpec, case: TrainingCase, where: str) -> list[Memory]:
    """Return what a device of every pipeline rank holds at the fullest moment, in bytes.

    All devices of a pipeline rank hold the same if tokens spread evenly over experts. Left out are
    buffers of communication, workspace of kernels, and what an allocator loses.

    Args:
        spec: The model.
        case: The training step.
        where: Start of an error message.

    Raises:
        UserError: If the model cannot be cut like that, or there is no such schedule.
    """
    check_layout(spec, case.layout, where)
    program = program_of(case, where)
    if program.stages > spec.num_hidden_layers:
        raise UserError(f"{where}: found {program.stages} pipeline stages for "
                        f"{spec.num_hidden_layers} layers; expected at most as many")  # fmt: skip
    cut = stages_of(spec, program.stages)
    activations = [activations_of(spec, pieces, case) for pieces in cut]
    memories = []
    for rank, operations in zip(ranks_of(program), program.ranks, strict=True):
        memory = _states(spec, rank, cut, case)
        for part, size in peak(operations, dict(enumerate(activations))).items():
            memory[part, "activations"] = size
        memories.append(memory)
    return memories


def ranks_of(program: Program) -> list[Rank]:
    """Return the stages of every rank: DualPipe has two on each, and each stage twice."""
    held = [
        tuple(sorted({task.stage for operation in operations for task in operation.tasks}))
        for operations in program.ranks
    ]
    copies = Counter(stage for stages in held for stage in stages)
    return [Rank(stages, {stage: copies[stage] for stage in stages}) for stages in held]


def _states(
    spec: DecoderSpec, rank: Rank, cut: Sequence[Sequence[Piece]], case: TrainingCase
) -> Memory:
    """Return weights, gradients and optimizer states of a rank."""
    pieces = [(piece, rank.copies[stage]) for stage in rank.stages for piece in cut[stage]]
    last = len(cut) - 1
    if last in rank.stages and 0 not in rank.stages and needs_embedding_at_the_end(spec):
        # A second copy of the embedding, kept equal to that of the first rank.
        pieces.append((Piece("embedding"), rank.copies[last]))
    memory: Memory = defaultdict(float)
    every = parameters(spec)
    for piece, copies in pieces:
        for group, number in every[piece].items():
            for kind, size in _bytes(group, number, copies, case).items():
                memory[group.part, kind] += size
    return memory


def _bytes(group: Group, number: int, copies: int, case: TrainingCase) -> dict[Kind, float]:
    stored = case.storage
    each: dict[Kind, float] = {
        "weights": stored.weights,
        "gradients": stored.gradients,
        "master_weights": stored.master_weights,
        "moments": stored.moments,
    }
    here = number * local_share(group.cut, case.layout)
    spread = copies * replicas(group.cut, case.layout)
    return {
        kind: here * size / (spread if case.zero >= SPREAD_FROM[kind] else 1)
        for kind, size in each.items()
    }


def replicas(cut: Cut, layout: Layout) -> int:
    """Return how many data-parallel devices of a pipeline rank hold the same parameters.

    What is whole on every device of a tensor-parallel group counts once in it.
    """
    if cut == "expert":
        return layout.tensor * layout.data // layout.expert
    return layout.data
