"""What autograd saves, against real tensors, closed forms and published formulas."""

import pytest
import torch
import torch.nn.functional as F
from memory_cases import (
    DENSE,
    GQA,
    LATENT,
    MIXED,
    MLA,
    MODELS,
    MOE,
    SPARSE,
    decoder,
    of_kind,
    training,
)
from torch import nn

from harness.config.decoder_schema import DecoderSpec
from harness.models import build_model
from harness.systems.memory.activations import activations_of, peak
from harness.systems.memory.cases import program_of
from harness.systems.memory.parameters import all_pieces, stages_of
from harness.systems.memory.saved_storages import count
from harness.systems.memory.saved_tensors import saved_for_backward
from harness.systems.memory.training import training_memory
from harness.systems.pipeline.programs import peak_activations


def really_saved(spec: DecoderSpec, sequences: int, length: int) -> tuple[int, int]:
    """Return bytes that autograd saves on real float32 tensors, and those of normalised values."""
    torch.manual_seed(0)
    model = build_model(spec)
    head = model.head.weight.shape
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}
    normalised = []
    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            module.register_forward_hook(lambda _m, _i, output: normalised.append(output.nbytes))

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own and tensor.shape != head:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(96, (sequences, length))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = model.objective(tokens, tokens, 0.0)
    del kept
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()), sum(normalised)


@pytest.mark.parametrize(
    "spec",
    [
        DENSE,
        decoder(MLA),
        decoder(GQA, MOE | {"first_k_dense_replace": 0, "intermediate_size": None}),
        SPARSE,
        decoder(MLA | {"q_lora_rank": None}, MOE | {"n_shared_experts": 0}),
        decoder(GQA, MOE | {"capacity_factor": 8, "balance": {"sequence_loss": 0.1}}),
    ],
)
def test_what_fake_tensors_save_is_what_real_ones_save(spec):
    sequences, length = 3, 16
    rows = saved_for_backward(spec, sequences, length, "float32")
    places = [piece.place for piece in all_pieces(spec)]
    # The row of a module that predicts counts with all modules, one here.
    counted = sum(row.nbytes * places.count(row.place) for row in rows)
    real, normalised = really_saved(spec, sequences, length)
    # On a CPU a norm keeps its normalised values too. All layers share cosine and sine, in float32.
    rotary = 2 * length * spec.rotary_dim * 4
    assert real - normalised - rotary == counted


def layer_bytes(spec: DecoderSpec, place: str, tokens: int) -> float:
    return sum(row.nbytes for row in saved_for_backward(spec, 1, tokens, "bfloat16")
               if row.place == place) / tokens  # fmt: skip


@pytest.mark.parametrize("name", ["qwen2_5_72b", "llama3_2_1b"])
def test_a_dense_layer_saves_what_its_widths_say(name):
    spec, tokens = MODELS[name], 512
    width, inner = spec.hidden_size, spec.feed_forward.intermediate_size
    heads, groups = spec.attention.num_attention_heads, spec.attention.num_key_value_heads
    values = (
        2 * (width + width)  # inputs of two norms, and what they return
        + (2 * heads + 2 * groups) * spec.head_dim  # queries, keys, values, result
        + 4 * inner  # gate, up, silu(gate), product
        + 4 * spec.head_dim  # cosine and sine, for queries and for keys
    )
    # float32: a scale per norm and row, a logarithm per head.
    assert layer_bytes(spec, "dense_layer", tokens) == 2 * values + 4 * (2 + heads)


def test_latent_attention_saves_what_its_widths_say():
    spec, tokens = LATENT, 512
    mla, width, inner = spec.attention, spec.hidden_size, spec.feed_forward.intermediate_size
    heads, latents = mla.num_attention_heads, mla.q_lora_rank + mla.kv_lora_rank
    values = (
        2 * (2 * width + latents)
        # Values and result are as wide as keys; then the result without the padding.
        + heads * (4 * spec.head_dim + mla.v_head_dim)
        + 4 * inner
        + 4 * mla.qk_rope_head_dim
    )
    assert layer_bytes(spec, "dense_layer", tokens) == 2 * values + 4 * (4 + heads)


class GptBlock(nn.Module):
    """The layer of arXiv 2205.05198, figure 2, without dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.first(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


def test_counting_finds_the_34_bytes_of_korthikanti_in_a_gpt_layer():
    batch, length, width, heads = 2, 8, 16, 4
    block = GptBlock(width, heads).to(torch.bfloat16)
    x = torch.randn(batch, length, width, dtype=torch.bfloat16, requires_grad=True)
    saved, _ = count(block, lambda: block(x * 1))
    found = sum(entry.storage.nbytes() for entry in saved.values())
    # Equation 2: sbh (34 + 5 a s / h). Fused attention drops the second term and has no dropout
    # mask of scores; the two masks of the residual stream are one byte each.
    masks, tokens = 2, batch * length
    # Besides, in float32: mean and scale of two norms (in bfloat16 on a CPU), logarithms by head.
    statistics = tokens * (2 * 2 * 2 + 4 * heads)
    assert found == tokens * width * (34 - masks) + statistics


def test_selective_recomputation_in_fp8_keeps_what_deepseek_v3_names():
    spec, tokens = LATENT, 512
    case = training(sequence_length=tokens, recomputation="selective",
                    storage=MIXED | {"activations": "fp8"})  # fmt: skip
    [piece] = [piece for piece in all_pieces(spec) if piece == ("dense_layer", 0)]
    found = activations_of(spec, [piece], case)
    mla, scale = spec.attention, 4 / 128
    heads = mla.num_attention_heads
    kept = (
        2 * (2 * spec.hidden_size + mla.q_lora_rank + mla.kv_lora_rank)  # inputs of norms
        + heads * spec.head_dim * (12 / 8 + scale)  # result of attention, E5M6
        + heads * mla.v_head_dim * (1 + scale)
        + 2 * spec.feed_forward.intermediate_size * (1 + scale)  # inputs of SwiGLU
        + 2 * 4 * mla.qk_rope_head_dim
        + 4 * (4 + heads)
    )
    assert sum(found.kept.values()) == pytest.approx(tokens * kept)


SCHEDULES = [("1f1b", 2), ("zb1p", 2), ("dualpipe", 2), ("dualpipe_v", 2)]


@pytest.mark.parametrize(("schedule", "ranks"), SCHEDULES)
@pytest.mark.parametrize("spec", [DENSE, SPARSE])
def test_recomputation_never_needs_more_memory(schedule, ranks, spec):
    layout = {"devices": ranks, "pipeline": ranks}
    none, selective, full = (
        training_memory(spec, training(layout=layout, schedule=schedule, recomputation=how), "test")
        for how in ("none", "selective", "full")
    )
    for most, some, least in zip(none, selective, full, strict=True):
        assert of_kind(some, "activations") < of_kind(most, "activations")
        assert of_kind(least, "activations") < of_kind(most, "activations")


@pytest.mark.parametrize("key", ["sequence_length", "micro_batch"])
@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_activations_grow_with_tokens(key, how):
    sizes = [
        of_kind(training_memory(SPARSE, training(**{key: value}, recomputation=how), "test")[0],
                "activations")
        for value in (4, 8, 16)
    ]  # fmt: skip
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("schedule", ["1f1b", "zb1p"])
def test_a_rank_holds_its_stage_as_often_as_the_schedule_says(schedule):
    case = training(layout={"devices": 4, "pipeline": 4}, schedule=schedule)
    stages = [activations_of(DENSE, pieces, case) for pieces in stages_of(DENSE, 4)]
    program = program_of(case, "test")
    times = (4, 3, 2, 1) if schedule == "1f1b" else peak_activations(program)
    for rank, operations in enumerate(program.ranks):
        expected = times[rank] * sum(stages[rank].kept.values())
        assert sum(peak(operations, {rank: stages[rank]}).values()) == expected


@pytest.mark.parametrize("spec", [DENSE, SPARSE])
def test_whole_recomputation_keeps_the_input_of_a_layer(spec):
    case = training(recomputation="full")
    for piece in all_pieces(spec):
        if piece.place.endswith("layer"):
            kept = activations_of(spec, [piece], case).kept
            assert sum(kept.values()) == 16 * spec.hidden_size * 2


def test_tensor_parallelism_divides_all_activations():
    one, two = (
        of_kind(training_memory(DENSE, training(layout={"devices": n, "tensor": n}), "test")[0],
                "activations")
        for n in (1, 2)
    )  # fmt: skip
    assert two == one / 2
