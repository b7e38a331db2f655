import json
import runpy
from pathlib import Path

import pytest
import torch

from harness.config.base import validate
from harness.config.decoder_schema import DecoderSpec
from harness.errors import UserError
from harness.measurement.decoding import decode_speed, equal_in_size, longest_context
from harness.models.decoder import Decoder

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "decoding.py"))
NAMES = ["mha", "gqa", "mqa", "mla_naive", "mla_absorbed"]


def decoder_spec(width=32, feed_forward=48, **options):
    spec = {"family": "decoder", "hidden_size": width, "num_hidden_layers": 2,
            "attention": {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 1},
            "feed_forward": {"kind": "swiglu", "intermediate_size": feed_forward}}  # fmt: skip
    return validate(DecoderSpec, spec | options, "test")


def test_it_reports_every_attention_at_every_context_and_batch(tmp_path, capsys):
    output = tmp_path / "decoding.json"
    BENCHMARK["main"](["--output", str(output), "--small", "--rounds", "1"])
    report = json.loads(output.read_text())
    rows = {(r["attention"], r["context"], r["batch"]): r for r in report["decoding"]}
    assert set(rows) == {(n, c, b) for n in NAMES for c in (8, 32) for b in (1, 2)}
    # Float32, two layers, 16 heads of width 8: elements by arXiv 2405.04434, table 1.
    elements = {"mha": 256, "gqa": 64, "mqa": 16, "mla_naive": 16 * (12 + 8), "mla_absorbed": 36}
    for (name, context, batch), row in rows.items():
        assert row["cache_bytes_per_token"] == 2 * 4 * elements[name]
        # One round: the median of ratios is the ratio of medians.
        reference = rows["mha", context, batch]["median_seconds"]
        assert row["time_to_mha"] == pytest.approx(row["median_seconds"] / reference)
        assert row["tokens_per_second"] == pytest.approx(batch / row["median_seconds"])
        free = 80 * 2**30 - row["weight_bytes"]
        longest = report["longest_context"][f"batch_{batch}"][name]
        per_position = batch * row["cache_bytes_per_token"]
        assert longest * per_position <= free < (longest + 1) * per_position
        assert report["ratios"][f"batch_{batch}_context_{context}"][name] == row["time_to_mha"]
    assert json.loads(capsys.readouterr().out)["ratios"] == report["ratios"]


@pytest.mark.parametrize("size", ["small", "cpu", "cuda"])
def test_models_of_the_benchmark_have_equal_numbers_of_parameters(size):
    with torch.device("meta"):
        models = {
            name: Decoder(spec, spec.vocab_size)
            for name, spec in BENCHMARK["contenders"](BENCHMARK["SIZES"][size]).items()
        }
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert set(counts) == {"mha", "gqa", "mqa", "mla"}
    for count in counts.values():
        assert count == pytest.approx(counts["mha"], rel=0.01)


@pytest.mark.parametrize("option", ["--rounds", "--contexts", "--batches", "--memory-gib"])
def test_numbers_below_one_are_refused_by_name(option, capsys):
    with pytest.raises(SystemExit):
        BENCHMARK["main"](["--output", "unused.json", option, "0"])
    assert f"{option}: invalid positive value: '0'" in capsys.readouterr().err


def test_a_size_out_of_reach_is_not_called_equal():
    specs = {"one": decoder_spec(vocab_size=8), "other": decoder_spec(256, vocab_size=8)}
    with pytest.raises(AssertionError, match="parameters with a feed-forward of 8"):
        equal_in_size(specs, "one")


def test_all_but_the_reference_get_another_feed_forward():
    specs = {
        "one": decoder_spec(vocab_size=8),
        "other": decoder_spec(feed_forward=480, vocab_size=8),
    }
    resized = equal_in_size(specs, "one")
    assert resized["one"] == specs["one"]
    assert resized["other"].feed_forward.intermediate_size == 48


def test_every_step_reads_one_token_per_sequence_behind_the_whole_context(monkeypatch):
    seen = []
    features = Decoder.features

    def spied(self, tokens_BT, cache):
        seen.append((tuple(tokens_BT.shape), cache.length))
        result = features(self, tokens_BT, cache)
        assert cache.length == seen[-1][1] + 1
        return result

    def one_second_a_step(sample, device):
        before = len(seen)
        sample()
        return len(seen) - before

    monkeypatch.setattr(Decoder, "features", spied)
    monkeypatch.setattr("harness.measurement.decoding.timed", one_second_a_step)
    records = decode_speed({"mqa": decoder_spec()}, [3, 9], 2, 2, torch.device("cpu"), vocab_size=7)
    assert set(seen) == {((2, 1), 3), ((2, 1), 9)}
    times = [r for r in records if r["metric"] == "decode/time_per_token"]
    assert [r["labels"] for r in times] == [
        {"attention": "mqa", "context": context, "batch": 2, "round": round_}
        for context in (3, 9)
        for round_ in (0, 1)
    ]
    assert {(r["value"], r["unit"]) for r in times} == {(1.0, "s")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_are_those_of_the_type_and_of_the_main_model(dtype):
    spec = decoder_spec(vocab_size=8)
    with_modules = decoder_spec(vocab_size=8, prediction={"depth": 1})
    records = decode_speed({"mqa": with_modules}, [4], 3, 1, torch.device("cpu"), dtype)
    found = {r["metric"]: r["value"] for r in records if r["unit"] == "B"}
    size = getattr(torch, dtype).itemsize
    weights = sum(parameter.numel() for parameter in Decoder(spec, 8).parameters())
    # One key-value head of width 8, keys and values, two layers.
    assert found == {"decode/cache_bytes_per_token": 2 * 8 * 2 * size,
                     "decode/weight_bytes": weights * size}  # fmt: skip


def test_a_decoder_without_a_vocabulary_is_refused():
    with pytest.raises(UserError, match="models: mqa: vocab_size: found none"):
        decode_speed({"mqa": decoder_spec()}, [4], 1, 1, torch.device("cpu"))


def test_weights_that_leave_no_memory_leave_no_context():
    assert longest_context(1000, 400, 10, 3) == 20
    assert longest_context(1000, 1001, 10, 3) == 0
