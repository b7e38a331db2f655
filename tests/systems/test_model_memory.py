"""Memory of deployments against real tensors, published formulas and laws of conservation."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from record_values import assert_told_apart, only
from torch import nn

from harness.config.base import validate
from harness.config.catalog import load_models
from harness.config.decoder_schema import DecoderSpec, SwiGLU
from harness.config.yaml_file import merge, read_yaml
from harness.errors import UserError
from harness.models import build_model
from harness.models.counts import count_parameters, total_parameters
from harness.reporting.memory_tables import memory_tables
from harness.systems.memory.activations import activations_of, peak
from harness.systems.memory.cases import InferenceCase, TrainingCase, program_of
from harness.systems.memory.evidence import model_memory, total
from harness.systems.memory.inference import inference_memory
from harness.systems.memory.parameters import all_pieces, parameters, stages_of
from harness.systems.memory.saved_storages import count
from harness.systems.memory.saved_tensors import saved_for_backward
from harness.systems.memory.training import training_memory
from harness.systems.pipeline.programs import peak_activations
from paper_figures import model_memory as figure

CONFIG = Path(__file__).parents[2] / "config"
MODELS = load_models(CONFIG / "models.yaml")
ARGUMENTS = read_yaml(CONFIG / "experiments" / "model_memory.yaml")["arguments"]
MIXED = {"weights": 2, "gradients": 2, "master_weights": 4, "moments": 8,
         "activations": "bfloat16"}  # fmt: skip
GQA = {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2}
MLA = {"kind": "mla", "num_attention_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16,
       "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}  # fmt: skip
SWIGLU = {"kind": "swiglu", "intermediate_size": 40}
MOE = {"kind": "moe", "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 2,
       "n_shared_experts": 1, "first_k_dense_replace": 2, "intermediate_size": 40}  # fmt: skip


def decoder(attention=GQA, feed_forward=SWIGLU, layers=4, **more) -> DecoderSpec:
    return validate(
        DecoderSpec,
        {"family": "decoder", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": layers,
         "attention": attention, "feed_forward": feed_forward} | more,
        "test",
    )  # fmt: skip


# Latent attention at its published size, without the many experts.
LATENT = MODELS["deepseek_v3"].model_copy(
    update={"feed_forward": SwiGLU(intermediate_size=18432), "prediction": None}
)
DENSE, SPARSE = decoder(), decoder(MLA, MOE, layers=6, prediction={"depth": 1})


def training(**changes) -> TrainingCase:
    base = {"model": "m", "device_memory": 80, "layout": {"devices": 1}, "micro_batches": 8,
            "sequence_length": 16, "storage": MIXED}  # fmt: skip
    return validate(TrainingCase, merge(base, changes), "test")


def inference(**changes) -> InferenceCase:
    base = {"model": "m", "device_memory": 80, "layout": {"devices": 1}, "weight_bytes": 2,
            "batch": 3, "context": 20}  # fmt: skip
    return validate(InferenceCase, merge(base, changes), "test")


def of_kind(memory, *kinds: str) -> float:
    return sum(size for (_, kind), size in memory.items() if kind in kinds)


@pytest.fixture(scope="module")
def records() -> list[dict]:
    names = read_yaml(CONFIG / "experiments" / "model_memory.yaml")["models"]
    return model_memory(models={name: MODELS[name] for name in names}, **ARGUMENTS)


# --- activations --------------------------------------------------------------------------------


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


# --- parameters and optimizer states ------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v2_lite", "qwen2_5_72b", "llama3_2_1b"])
def test_parameters_by_part_are_those_of_the_closed_form(name):
    found: dict[str, int] = {}
    for groups in parameters(MODELS[name]).values():
        for group, number in groups.items():
            found[group.part] = found.get(group.part, 0) + number
    expected = {part: count.total for part, count in count_parameters(MODELS[name]).items()}
    assert found == {part: number for part, number in expected.items() if number}


@pytest.mark.parametrize("devices", [1, 4, 64])
@pytest.mark.parametrize(
    ("zero", "bytes_per_parameter"),
    [
        (0, lambda n: 16),
        (1, lambda n: 4 + 12 / n),
        (2, lambda n: 2 + 14 / n),
        (3, lambda n: 16 / n),
    ],
)
def test_mixed_precision_adam_takes_the_bytes_of_the_zero_paper(zero, bytes_per_parameter, devices):
    case = training(layout={"devices": devices, "data": devices}, zero=zero)
    [memory] = training_memory(DENSE, case, "test")
    states = of_kind(memory, "weights", "gradients", "master_weights", "moments")
    assert states == pytest.approx(total_parameters(DENSE) * bytes_per_parameter(devices))


def test_moments_are_those_of_a_real_step_of_adam():
    model = build_model(DENSE)
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    model.objective(tokens, tokens, 0.0)[0].backward()
    optimizer.step()
    states = optimizer.state.values()
    real = sum(state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes for state in states)
    [memory] = training_memory(DENSE, training(), "test")
    assert of_kind(memory, "moments") == real
    gradients = sum(p.grad.nbytes for p in model.parameters())
    case = training(storage=MIXED | {"gradients": 4})
    assert of_kind(training_memory(DENSE, case, "test")[0], "gradients") == gradients


layouts = st.tuples(
    st.sampled_from([("1f1b", 1), ("1f1b", 3), ("zb1p", 2), ("dualpipe", 2), ("dualpipe", 4),
                     ("dualpipe_v", 2), ("dualpipe_v", 3)]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2]),
)  # fmt: skip


@settings(max_examples=30)
@given(layouts, st.sampled_from([0, 1, 2, 3]))
def test_all_devices_together_hold_every_parameter_once_for_each_copy(chosen, zero):
    (schedule, ranks), data, expert, tensor = chosen
    if (data * tensor) % expert:
        expert = 1
    layout = {"devices": ranks * data * tensor, "pipeline": ranks, "data": data, "expert": expert,
              "tensor": tensor}  # fmt: skip
    case = training(layout=layout, schedule=schedule, zero=zero, micro_batches=12)
    memories = training_memory(SPARSE, case, "test")
    everywhere = {
        kind: sum(of_kind(memory, kind) for memory in memories) * data * tensor
        for kind in ("weights", "gradients", "master_weights", "moments")
    }
    every = parameters(SPARSE)
    copies = 2 if schedule == "dualpipe" else 1
    numbers = [item for groups in every.values() for item in groups.items()]
    # The last stage reads the embedding, for prediction; DualPipe and DualPipeV have it there.
    # DualPipe's other ranks of that stage are its first.
    if ranks > 1 and schedule in ("1f1b", "zb1p"):
        numbers += every[all_pieces(SPARSE)[0]].items()
    for kind, start in (("weights", 3), ("gradients", 2), ("master_weights", 1), ("moments", 1)):
        spread = zero >= start
        held = 0.0
        for group, number in numbers:
            replicas = data * tensor / expert if group.cut == "expert" else data
            in_tensor_group = tensor if group.cut == "whole" else 1
            held += number * in_tensor_group * (1 if spread else copies * replicas)
        assert everywhere[kind] == pytest.approx(held * MIXED[kind])


def test_what_all_heads_share_is_whole_on_every_device_of_a_tensor_parallel_group():
    one, two = (
        training_memory(SPARSE, training(layout={"devices": n, "tensor": n}), "test")[0]
        for n in (1, 2)
    )
    # Down-projections of queries (24), keys and values (16) and the shared rotary key (4).
    shared = 2 * 6 * 32 * (24 + 16 + 4)
    weights = one["attention", "weights"]
    assert two["attention", "weights"] == shared + (weights - shared) / 2
    for part in ("norms", "router"):
        assert two[part, "weights"] == one[part, "weights"]


def test_stages_are_consecutive_complete_and_even():
    pieces = stages_of(MODELS["deepseek_v3"], 16)
    assert [piece for stage in pieces for piece in stage] == all_pieces(MODELS["deepseek_v3"])
    layers = [sum(piece.place.endswith("layer") for piece in stage) for stage in pieces]
    assert layers == [4] * 13 + [3] * 3


# --- inference ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [DENSE, decoder(MLA)])
def test_cache_is_what_the_model_allocates(spec):
    memory = inference_memory(spec, inference(), "test")
    real = build_model(spec).new_cache(3, 20, dtype=torch.bfloat16).nbytes
    assert of_kind(memory, "cache") == real


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_heads_are_spread_and_a_latent_is_not(tensor):
    case = inference(layout={"devices": tensor, "tensor": tensor})
    for spec, share in ((DENSE, 1 / min(tensor, 2)), (decoder(MLA), 1.0)):
        one = of_kind(inference_memory(spec, inference(), "test"), "cache")
        assert of_kind(inference_memory(spec, case, "test"), "cache") == one * share


def test_weights_of_one_device_are_the_whole_model_without_prediction():
    case = inference(weight_bytes=1, other_weight_bytes=1)
    memory = inference_memory(SPARSE, case, "test")
    assert of_kind(memory, "weights") == total_parameters(SPARSE)
    with_it = inference_memory(SPARSE, case.model_copy(update={"prediction": True}), "test")
    added = count_parameters(SPARSE)["prediction"].total
    assert of_kind(with_it, "weights") == total_parameters(SPARSE) + added
    assert of_kind(with_it, "cache") == of_kind(memory, "cache") * 7 / 6


@pytest.mark.parametrize(
    ("case", "experts"),
    [("deepseek_v3_decode_ep320", 1), ("deepseek_v3_prefill_ep32", 9),
     ("deepseek_v3_decode_ep144", 2)],
)  # fmt: skip
def test_published_deployments_hold_as_many_experts_per_device_as_they_say(records, case, experts):
    found = only(records, "memory/of", case=case, part="experts", statistic="largest")
    one_byte = 58 * experts * 3 * 7168 * 2048 / 1e9
    assert found == pytest.approx(one_byte * (1 + 4 / 128**2))


def test_largest_batch_and_context_fit_and_one_more_does_not(records):
    case = ARGUMENTS["inference"]["qwen2_5_72b_bf16"]
    spec, room = MODELS["qwen2_5_72b"], 80e9
    for key in ("batch", "context"):
        largest = only(records, f"memory/largest_{key}", case="qwen2_5_72b_bf16")
        fits, over = (
            total(inference_memory(spec, validate(InferenceCase, case | {key: size}, "t"), "t"))
            for size in (int(largest), int(largest) + 1)
        )
        assert fits <= room < over


def test_largest_micro_batch_fits_and_one_more_does_not(records):
    case = ARGUMENTS["training"]["llama3_2_1b_one_device"]
    largest = int(only(records, "memory/largest_micro_batch", case="llama3_2_1b_one_device"))
    fits, over = (
        total(training_memory(MODELS["llama3_2_1b"],
                              validate(TrainingCase, case | {"micro_batch": size}, "t"), "t")[0])
        for size in (largest, largest + 1)
    )  # fmt: skip
    assert fits <= 80e9 < over


# --- the experiment -----------------------------------------------------------------------------


def test_no_two_records_are_told_apart_by_nothing(records):
    assert_told_apart(records)


def test_parts_add_up_to_the_total_of_every_case(records):
    for record in records:
        if record["metric"] == "memory/total":
            labels = record["labels"]
            parts = [r["value"] for r in records if r["metric"] == "memory/of"
                     and r["labels"].items() >= labels.items()]  # fmt: skip
            assert sum(parts) == pytest.approx(record["value"])


def test_the_ledger_has_these_verdicts(records, verdicts_of):
    assert verdicts_of("model_memory", records) == {
        "ds.memory.fp8_weights": "reproduced",
        "ds.dualpipe.parameters": "reproduced",
    }


def test_figure_stacks_to_the_totals_and_tables_have_a_row_for_each_case(records, results_of):
    results = results_of("model_memory", records)
    [(_, drawn)] = figure.draw(results).values()
    for ax, phase in zip(drawn.axes, ("training", "inference"), strict=True):
        names = [text.get_text() for text in ax.get_yticklabels()]
        assert names == list(ARGUMENTS[phase])
        bars = [(round(p.get_y() + p.get_height() / 2), p.get_x() + p.get_width())
                for p in ax.patches]  # fmt: skip
        ends = [max(end for row, end in bars if row == place) for place in range(len(names))]
        expected = [only(records, "memory/total", case=n, statistic="largest") for n in names]
        assert ends == pytest.approx(expected)
    plt.close(drawn)
    for table in memory_tables(results, "model_memory"):
        assert list(table.text["case"]) == [*ARGUMENTS["training"], *ARGUMENTS["inference"]]


@pytest.mark.parametrize(
    ("phase", "change", "message"),
    [
        ("training", {"model": "deepseek_v4"}, "found 'deepseek_v4' .did you mean 'deepseek_v3'"),
        ("training", {"layout": {"devices": 2000}}, "layout.devices: found 2000.* = 2048"),
        ("training", {"layout": {"expert": 48}}, "expert: found 48, expected a divisor of tensor"),
        ("training", {"layout": {"devices": 61440, "data": 3840, "expert": 768}},
         "expert: found 768, expected a divisor of n_routed_experts = 256 .nearest: 256"),
        ("training", {"layout": {"devices": 6144, "tensor": 3}},
         "tensor: found 3, expected a divisor of num_attention_heads = 128 .nearest: 2"),
        ("training", {"layout": {"devices": 8192, "pipeline": 64}, "micro_batches": 128},
         "found 64 pipeline stages for 61 layers"),
        ("training", {"micro_batches": 31}, "dualpipe: micro_batches: found 31"),
        ("training", {"schedule": "dualpip"}, "schedule: found 'dualpip' .did you mean 'dualpipe'"),
        ("training", {"schedule": "interleaved_1f1b", "layout": {"devices": 128, "pipeline": 1}},
         "interleaved_1f1b, layout.pipeline is 1"),
        ("training", {"zero": 4}, "zero: found 4"),
        ("training", {"storage": {"activations": "fp4"}}, "storage.activations: found 'fp4'"),
        ("training", {"variant_of": "x"}, "variant_of: found 'x'"),
        ("training", {"variant_of": "case"}, "variant_of: 'case' is a variant of 'case'"),
        ("inference", {"layout": {"devices": 640, "pipeline": 2}}, "expected 1: serving has no"),
        ("inference", {"redundant_experts": 0, "layout": {"expert": 256}}, "at least the 1 shared"),
        ("inference", {"redundant_experts": 63}, r"n_routed_experts \+ redundant_experts = 319"),
        ("inference", {"batch": 0}, "batch: found 0"),
        ("inference", {"contxt": 1}, "unknown key 'contxt' .did you mean 'context'"),
    ],
)  # fmt: skip
def test_bad_cases_are_named(phase, change, message):
    names = {"training": "deepseek_v3", "inference": "deepseek_v3_decode_ep320"}
    cases = {"training": {}, "inference": {}} | {
        phase: {"case": merge(ARGUMENTS[phase][names[phase]], change)}
    }
    with pytest.raises(UserError, match=f"model_memory: {phase}.case.*{message}"):
        model_memory(models={"deepseek_v3": MODELS["deepseek_v3"]}, ratios=[], **cases)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {"tiny": MODELS["decoder_tiny"]}}, "tiny.vocab_size: found none"),
        ({"ratios": [{"first": "a", "over": "b", "kind": "weights"}]}, "ratios: found case 'a'"),
        ({"inference": {"case": ARGUMENTS["inference"]["qwen2_5_72b_bf16"]}}, "among training too"),
        ({"training": {"case": ARGUMENTS["training"]["qwen2_5_72b_256_devices"]
                       | {"layout": {"devices": 8, "data": 8, "expert": 2}}}}, "has no experts"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change, message):
    good = {"models": {"qwen2_5_72b": MODELS["qwen2_5_72b"]}, "ratios": [], "inference": {},
            "training": {"case": ARGUMENTS["training"]["qwen2_5_72b_256_devices"]}}  # fmt: skip
    with pytest.raises(UserError, match=message):
        model_memory(**good | change)
