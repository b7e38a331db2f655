"""Bit flips in training: what is hit, that all else is equal, and what is said of the outcome."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.models.counts import count_parameters
from harness.numerics.bit_flips import flip_bit_
from harness.training import faults
from harness.training.faults import (
    PARTS,
    TARGETS,
    Course,
    Fault,
    FaultInjector,
    outcome,
    part_of,
    plan_faults,
    state_of,
)
from harness.training.step import TrainingStep

MODEL = {
    "family": "decoder",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "attention": {"kind": "gqa", "num_attention_heads": 2, "num_key_value_heads": 1},
    "feed_forward": {"kind": "swiglu", "intermediate_size": 32},
}
TRAINING = {
    "steps": 12,
    "batch_size": 2,
    "sequence_length": 16,
    "accumulation": 1,
    "attend_across_documents": True,
    "schedule": {"kind": "warmup_cosine", "warmup": 0.1, "final": 0.1},
    "gradient_clip": 1.0,
    "gradient_outliers": None,
    "precision": "float32",
    "evaluation_batches": 1,
}
ADAMW = {"class": "torch.optim.AdamW", "parameters": "all", "arguments": {}, "companion": None,
         "calibration": None}  # fmt: skip
SGD = ADAMW | {"class": "torch.optim.SGD", "arguments": {"momentum": 0.9}}
TAKEN, OBSERVE = 4, 3


def injector(data, optimizer=ADAMW, model=MODEL, observe=OBSERVE, **training) -> FaultInjector:
    spec = {"task": "language", "model": model, "optimizer": optimizer, "compile": False,
            "training": TRAINING | training, "learning_rate": 0.01, "seed": 3}  # fmt: skip
    step = TrainingStep(spec, data, torch.device("cpu"), None)
    for taken in range(TAKEN):
        step.take(taken)
    return FaultInjector(step, TAKEN, observe)


@pytest.fixture
def plain(data) -> FaultInjector:
    return injector(data)


def test_a_course_without_a_fault_is_the_uninterrupted_run(data, plain):
    whole = injector(data)
    losses = tuple(whole.step.take(TAKEN + offset)[0].item() for offset in range(OBSERVE))
    course = plain.course()
    assert course.losses == losses
    assert all(
        torch.equal(one, other)
        for one, other in zip(plain.step.model.parameters(), whole.step.model.parameters(),
                              strict=True)
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_no_fault_leaves_a_trace_in_the_next_course(plain, target):
    reference = plain.course()
    for bit in ("sign", "exponent_7"):
        plain.course(Fault(target, "attention", bit, 0, 0.3))
    assert plain.course() == reference


@pytest.mark.parametrize("target", TARGETS)
def test_a_course_has_one_flip(data, target, monkeypatch):
    flips = []
    monkeypatch.setattr(faults, "flip_bit_", lambda *flip: flips.append(flip))
    injector(data, accumulation=2).course(Fault(target, "norms", "sign", 0, 0.9))
    assert [bit for _, _, bit in flips] == ["sign"]


def test_parts_are_those_of_the_closed_form(plain):
    from harness.config.decoder_schema import DecoderSpec

    spec = DecoderSpec(**MODEL)
    vocabulary = plain.step.task.manifest["vocab_size"]
    counts = {part: count.total for part, count in count_parameters(spec, vocabulary).items()}
    found = {part: sum(p.numel() for p in plain.holders("weight", part)) for part in PARTS}
    assert found == {
        "embedding": counts["embedding"],
        "attention": counts["attention"],
        "feed_forward": counts["dense"],
        "norms": counts["norms"],
        "head": counts["head"],
    }
    assert all(part_of(name) for name, _ in plain.step.model.named_parameters())


def test_modules_of_all_parts_have_activations(plain):
    counts = {part: len(plain.holders("activation", part)) for part in PARTS}
    assert counts == {"embedding": 1, "attention": 2, "feed_forward": 2, "norms": 5, "head": 1}


@pytest.mark.parametrize("target", ["weight", "first_moment", "second_moment"])
@pytest.mark.parametrize("place", [0.0, 0.4, 0.999])
def test_what_stays_is_hit_once_where_the_fault_says(plain, target, place):
    fault = Fault(target, "feed_forward", "mantissa_1", 0, place)
    before = [x.detach().clone() for x in plain.holders(target, fault.part)]
    others = copy.deepcopy(state_of(plain.step))
    with plain.injected(fault):
        after = plain.holders(target, fault.part)
    expected = torch.cat([x.flatten() for x in before])
    flip_bit_(expected, int(place * len(expected)), "mantissa_1")
    assert torch.equal(expected, torch.cat([x.detach().flatten() for x in after]))
    # Of all weights, no others changed.
    weights = plain.step.model.state_dict()
    different = sum(int((weights[name] != old).sum()) for name, old in others["model"].items())
    assert different == (target == "weight")


def first_step(inj: FaultInjector, fault: Fault | None):
    """Return gradients by name as the optimizer got them, and their norm before clipping."""
    gradients = {}

    def look(_):
        for name, parameter in inj.step.model.named_parameters():
            gradients[name] = parameter.grad.clone()

    inj.restart()
    with inj.injected(fault):
        _, norm = inj.step.take(inj.taken, look)
    return gradients, norm.item()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_gradient_is_hit_in_one_value_of_one_step(data, accumulation):
    inj = injector(data, gradient_clip=None, accumulation=accumulation)
    clean, _ = first_step(inj, None)
    # Nothing but a gradient of exactly one value is off, and only in this step.
    hit, _ = first_step(inj, Fault("gradient", "head", "mantissa_1", 0, 0.5))
    again, _ = first_step(inj, None)
    changed = {name: int((hit[name] != clean[name]).sum()) for name in clean}
    assert {name: count for name, count in changed.items() if count} == {"head.weight": 1}
    assert all(torch.equal(again[name], clean[name]) for name in clean)
    if accumulation == 1:
        expected = clean["head.weight"].clone()
        flip_bit_(expected, expected.numel() // 2, "mantissa_1")
        assert torch.equal(hit["head.weight"], expected)


def test_a_gradient_is_hit_before_it_is_clipped(data):
    fault = Fault("gradient", "norms", "exponent_7", 0, 0.5)
    inj = injector(data, gradient_clip=0.1)
    hit, norm = first_step(inj, fault)
    assert norm > 1e30
    # The norm explodes with the one value, so that clipping takes the step from all others.
    assert sum(float(gradient.square().sum()) for gradient in hit.values()) <= 0.1**2 * 1.001
    assert inj.course(fault).is_finite
    assert not injector(data, gradient_clip=None).course(fault).is_finite


def test_an_activation_is_hit_once_and_gradients_pass_it_unchanged(data):
    inj = injector(data, gradient_clip=None)
    outputs = []
    inj.restart()
    head = inj.step.model.head
    with inj.injected(Fault("activation", "head", "sign", 0, 0.25)):
        # Registered later, so that it sees what the fault left.
        watch = head.register_forward_hook(lambda *call: outputs.append(call[2].detach().clone()))
        inj.step.take(TAKEN)
    inj.restart()
    inj.step.take(TAKEN)
    watch.remove()
    hit, clean = outputs
    expected = clean.clone()
    flip_bit_(expected, clean.numel() // 4, "sign")
    assert torch.equal(hit, expected)
    # The loss reads the wrong value; its gradient with respect to it is that of the wrong value.
    first, _ = first_step(inj, Fault("activation", "head", "sign", 0, 0.25))
    assert all(gradient.isfinite().all() for gradient in first.values())


def test_in_bfloat16_an_activation_has_the_same_bits(data):
    inj = injector(data, precision="bfloat16")
    seen = []
    fault = Fault("activation", "feed_forward", "mantissa_7", 0, 0.9)
    inj.restart()
    module = inj.step.model.blocks[1].feed_forward
    with inj.injected(fault):
        watch = module.register_forward_hook(lambda *call: seen.append(call[2].dtype))
        inj.step.take(TAKEN)
    watch.remove()
    assert seen == [torch.bfloat16]
    assert inj.course(fault).is_finite


def test_the_sign_of_a_mean_square_ends_training_and_that_of_momentum_does_not(plain):
    # A negative mean square has no root. Place 0.5 is a value that has had a gradient.
    assert not plain.course(Fault("second_moment", "attention", "sign", 0, 0.5)).is_finite
    assert plain.course(Fault("first_moment", "attention", "sign", 0, 0.5)).is_finite


def test_the_top_bit_of_the_exponent_does_harm_and_the_last_of_the_mantissa_none(plain):
    reference = plain.course()
    top = outcome("weight", plain.course(Fault("weight", "head", "exponent_7", 0, 0.1)), reference,
                  0.01)  # fmt: skip
    last = outcome("weight", plain.course(Fault("weight", "head", "mantissa_7", 0, 0.1)),
                   reference, 0.01)  # fmt: skip
    assert (top["harmful"], last["harmful"]) == (1, 0)
    assert last["recovery_steps"] == 0


@given(st.lists(st.tuples(st.floats(1, 10), st.booleans()), min_size=1, max_size=5))
def test_recovery_is_counted_to_the_last_loss_outside_the_tolerance(steps):
    losses = tuple(loss for loss, _ in steps)
    raised = tuple(loss * (1.02 if outside else 1.005) for loss, outside in steps)
    found = outcome("weight", Course(raised, 3.0), Course(losses, 3.0), tolerance=0.01)
    last = max((number for number, (_, outside) in enumerate(steps, 1) if outside), default=0)
    assert found.get("recovery_steps") == (last if last < len(steps) else None)
    assert found["harmful"] == 0
    assert found["first_change"] == pytest.approx(raised[0] - losses[0])
    assert found["peak_change"] == pytest.approx(max(np.subtract(raised, losses)))


def test_what_only_the_optimizer_reads_is_first_seen_a_step_later():
    reference, course = Course((3.0, 3.0), 3.0), Course((3.0, 3.5), 3.1)
    for target in TARGETS:
        expected = 0 if target in ("weight", "activation") else 0.5
        assert outcome(target, course, reference, 0.01)["first_change"] == expected


def test_a_loss_that_is_not_a_number_is_harm_without_a_size():
    reference = Course((3.0, 3.0), 3.0)
    for course in (Course((3.0, math.inf), math.nan), Course((3.0, 3.0), math.nan)):
        assert outcome("weight", course, reference, 1.0) == {"non_finite": 1, "harmful": 1}


def test_all_bits_of_a_draw_hit_the_same_place_and_more_draws_keep_the_first():
    few = plan_faults(["weight", "gradient"], ["head", "norms"], ["sign", "exponent_7"], 2, seed=5)
    assert len(few) == 16
    places = {(fault.target, fault.part, fault.draw): fault.place for fault in few}
    assert len(set(places.values())) == 8
    assert all(fault.place == places[fault.target, fault.part, fault.draw] for fault in few)
    more = plan_faults(["gradient"], ["head"], ["sign"], 5, seed=5)
    assert [fault for fault in more if fault.draw < 2] == [
        fault for fault in few
        if (fault.target, fault.part, fault.bit) == ("gradient", "head", "sign")
    ]  # fmt: skip


def test_what_a_run_does_not_have_is_refused_and_named(data):
    inj = injector(data, SGD, MODEL | {"tie_word_embeddings": True})
    assert inj.holders("first_moment", "attention")
    with pytest.raises(UserError, match=r"x: faults\.targets: found second_moment, which this opt"):
        inj.check(["weight", "second_moment"], ["attention"], "x: faults")
    with pytest.raises(UserError, match=r"parts: found head, of which this model has no weight"):
        inj.check(["weight"], ["embedding", "head"], "x: faults")
    # A tied head has no weights, but outputs.
    inj.check(["weight", "activation"], ["embedding", "head"], "x: faults")
