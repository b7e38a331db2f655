"""Parameters and optimizer states of deployments: published formulas, conservation, real steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cases import DENSE, MIXED, MODELS, SPARSE, of_kind, training

from harness.models import build_model
from harness.models.counts import count_parameters, total_parameters
from harness.systems.memory.parameters import all_pieces, parameters, stages_of
from harness.systems.memory.training import training_memory


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
