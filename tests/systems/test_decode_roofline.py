"""Rooflines of decoding against parameter counts, counted operations and drawn experts."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from record_values import assert_told_apart, only
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.config.base import validate
from harness.config.catalog import load_models
from harness.config.decoder_schema import DecoderSpec
from harness.config.yaml_file import read_yaml
from harness.errors import UserError
from harness.models import build_model
from harness.models.counts import activated_parameters, count_parameters, total_parameters
from harness.systems.decode_roofline import (
    Device,
    Load,
    Storage,
    decode_step,
    draft_step,
    touched_experts,
)
from harness.systems.decode_roofline_evidence import decode_roofline
from paper_figures import decode_roofline as figure

CONFIG = Path(__file__).parents[2] / "config"
EXPERIMENT = read_yaml(CONFIG / "experiments" / "decode_roofline.yaml")
MODELS = load_models(CONFIG / "models.yaml")
GIVEN = EXPERIMENT["arguments"] | {"models": {name: MODELS[name] for name in EXPERIMENT["models"]}}
V2, V3, QWEN = (MODELS[name] for name in ("deepseek_v2", "deepseek_v3", "qwen2_5_72b"))
FP8 = Storage(weight=1, cache=2)
ALONE = Load(batch=1, context=0)
LOADS = st.builds(Load, batch=st.integers(1, 5000), context=st.integers(0, 200_000))


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return decode_roofline(**GIVEN)


def test_no_two_records_are_told_apart_by_nothing(records):
    assert_told_apart(records)


@pytest.mark.parametrize(("spec", "billions"), [(V3, 36.62), (V2, 20.85), (QWEN, 71.46)])
def test_one_token_reads_the_activated_parameters(spec, billions):
    read = decode_step(spec, FP8, ALONE).read
    assert read == pytest.approx(activated_parameters(spec))
    assert read / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize("spec", [V3, V2, QWEN])
def test_many_tokens_read_all_parameters_but_the_embedding(spec):
    read = decode_step(spec, FP8, Load(batch=100_000, context=0)).read
    everything = total_parameters(spec) - count_parameters(spec)["embedding"].total
    assert read == pytest.approx(everything)


def test_cache_is_the_printed_one_per_token():
    load = Load(batch=3, context=1000)
    for spec, printed in ((V3, 70_272), (QWEN, 327_680)):
        assert decode_step(spec, FP8, load).cache == 3 * 1000 * printed


def test_draft_costs_what_the_counts_of_the_module_and_head_say():
    # 4.4 % of the activated weights: 0.688 B of the module and 0.927 B of the head.
    share = draft_step(V3, FP8, ALONE).read / decode_step(V3, FP8, ALONE).read
    assert share == pytest.approx((0.688 + 0.927) / 36.62, abs=0.0002)


@pytest.mark.parametrize(
    "attention",
    [
        {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2},
        {"kind": "mla", "num_attention_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 32,
         "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12},
    ],
)  # fmt: skip
def test_operations_are_those_that_a_built_model_executes(attention):
    spec = validate(DecoderSpec, {
        "family": "decoder", "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2,
        "attention": attention, "feed_forward": {"kind": "swiglu", "intermediate_size": 80},
    }, "test")  # fmt: skip
    model, load = build_model(spec), Load(batch=3, context=17)
    tokens = torch.zeros(load.batch, load.context, dtype=torch.long)
    cache = model.new_cache(load.batch, load.context, form="absorbed")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(tokens[:, :-1], cache)
        with FlopCounterMode(display=False) as counter:
            model(tokens[:, -1:], cache)
    assert counter.get_total_flops() == decode_step(spec, FP8, load).flops


@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
def test_touched_experts_are_as_many_as_are_drawn(tokens):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2000, tokens, 64, generator=generator)
    chosen = scores.topk(6, dim=-1).indices.flatten(1)
    drawn = torch.tensor([len(set(row.tolist())) for row in chosen]).double()
    # Four standard errors of the mean.
    error = 4 * float(drawn.std()) / 2000**0.5 + 1e-9
    assert touched_experts(64, 6, tokens) == pytest.approx(float(drawn.mean()), abs=error)


@given(LOADS, st.sampled_from([V3, V2, QWEN]))
def test_more_sequences_are_slower_each_and_faster_together(load, spec):
    larger = load.model_copy(update={"batch": load.batch + 1})
    device = Device(bandwidth=3000, peak_tflops=989.4)
    one, other = (decode_step(spec, FP8, each).seconds(device) for each in (load, larger))
    assert other >= one
    assert larger.batch / other >= load.batch / one * (1 - 1e-12)


@given(LOADS, st.floats(1, 1e5), st.floats(1, 1e4))
def test_time_is_that_of_memory_below_the_ridge_and_of_operations_above(load, bandwidth, peak):
    work, device = decode_step(V3, FP8, load), Device(bandwidth=bandwidth, peak_tflops=peak)
    memory, compute = work.read / bandwidth / 1e9, work.flops / peak / 1e12
    expected = memory if work.intensity < device.ridge else compute
    assert work.seconds(device) == pytest.approx(expected)
    assert work.seconds(device) >= work.seconds(Device(bandwidth=bandwidth))


@given(st.floats(0.1, 1e6))
def test_speed_is_proportional_to_bandwidth_if_computation_is_free(bandwidth):
    work = decode_step(V2, FP8, ALONE)
    twice = work.seconds(Device(bandwidth=2 * bandwidth))
    assert work.seconds(Device(bandwidth=bandwidth)) == pytest.approx(2 * twice)


def test_implied_bandwidth_gives_the_stated_speed_back(records):
    for storage, weight in (("bfloat16", 2), ("fp8", 1), ("4_bit", 0.5)):
        of = {"statement": "v3_on_a_server", "storage": storage}
        bandwidth = only(records, "roofline/implied_bandwidth", **of)
        assert bandwidth * 1e9 == pytest.approx(20 * weight * activated_parameters(V3))


def test_speed_beside_a_statement_is_the_ratio_of_activated_parameters(records):
    expected = 20 * activated_parameters(V2) / activated_parameters(QWEN)
    for storage in ("bfloat16", "fp8", "4_bit"):
        of = {"statement": "v2_on_a_pc", "storage": storage, "model": "qwen2_5_72b"}
        assert only(records, "roofline/tokens_per_second", **of) == pytest.approx(expected)


def test_drafting_is_worth_less_than_acceptance_says_and_least_where_new_experts_are_read(records):
    of = {"model": "deepseek_v3", "device": "h800", "acceptance": 0.85, "context": 4096}
    speedups = {batch: only(records, "roofline/drafting_speedup", batch=batch, **of)
                for batch in (1, 8, 512)}  # fmt: skip
    assert all(1 < speedup < 1.85 for speedup in speedups.values())
    assert speedups[8] < speedups[1] < speedups[512]


def test_stacked_memory_speed_does_not_depend_on_bytes_per_weight(records):
    # A dense model reads all of it: 135e9 B/s and Gbit are 1,080 times its bytes per second.
    for model in ("llama3_1_405b", "deepseek_v3"):
        speeds = [only(records, "roofline/stacked_tokens_per_second", model=model, storage=storage)
                  for storage in ("bfloat16", "fp8", "4_bit")]  # fmt: skip
        read = activated_parameters(MODELS[model]) / total_parameters(MODELS[model])
        assert speeds == pytest.approx([1080 / read] * 3)


def test_the_ledger_has_these_verdicts(records, verdicts_of):
    assert verdicts_of("decode_roofline", records) == {
        "ds.decode.dense_70b": "reproduced",
        "ds.decode.dense_70b_twice": "contradicted",
    }


def test_figure_draws_every_model_and_marks_every_statement(records, results_of):
    [(_, drawn)] = figure.draw(results_of("decode_roofline", records)).values()
    left = drawn.axes[0]
    labels = {line.get_label() for line in left.lines}
    assert set(EXPERIMENT["models"]) <= labels
    assert sum(len(line.get_xdata()) for line in left.lines if line.get_marker() == "x") == 3


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("single", "load", "batch"), 0, "single.load.batch: found 0"),
        (("served", "storage", "weight"), -1, "served.storage.weight: found -1"),
        (("served", "acceptance"), [1.2], "served.acceptance.* found 1.2"),
        (("served", "devices", "h800"), {"bandwith": 1}, "mean 'bandwidth'"),
        (
            ("statements", "v2_on_a_pc", "model"),
            "deepseek_v4",
            "found model 'deepseek_v4' .did you",
        ),
        (("models", "deepseek_v3"), MODELS["decoder_tiny"], "deepseek_v3.vocab_size: found none"),
    ],
)
def test_bad_arguments_are_named(path, value, message):
    changed = deepcopy(GIVEN)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(UserError, match=message):
        decode_roofline(**changed)
