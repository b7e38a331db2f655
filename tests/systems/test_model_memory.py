"""Memory of inference, and the experiment: its records, ledger, table, figure and refusals."""

import matplotlib.pyplot as plt
import pytest
import torch
from memory_cases import ARGUMENTS, CONFIG, DENSE, MLA, MODELS, SPARSE, decoder, inference, of_kind
from record_values import assert_told_apart, only

from harness.config.base import validate
from harness.config.yaml_file import merge, read_yaml
from harness.errors import UserError
from harness.models import build_model
from harness.models.counts import count_parameters, total_parameters
from harness.reporting.memory_tables import memory_tables
from harness.systems.memory.cases import InferenceCase, TrainingCase
from harness.systems.memory.evidence import model_memory, total
from harness.systems.memory.inference import inference_memory
from harness.systems.memory.training import training_memory
from paper_figures import model_memory as figure


@pytest.fixture(scope="module")
def records() -> list[dict]:
    names = read_yaml(CONFIG / "experiments" / "model_memory.yaml")["models"]
    return model_memory(models={name: MODELS[name] for name in names}, **ARGUMENTS)


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
