import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.training.schedules import learning_rate_factor

COSINE = {"kind": "warmup_cosine", "warmup": 0.0, "final": 0.1}
STABLE = {"kind": "warmup_stable_decay", "warmup": 0.1, "decay": 0.2, "final": 0.0}


def test_cosine_equals_torch():
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(50):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate_factor(COSINE, step, 50) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        reference.step()


def test_stable_decay_has_three_stretches():
    factors = [learning_rate_factor(STABLE, step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(factors[10:81]) == {1.0}
    assert factors[81:] == pytest.approx([(100 - step) / 20 for step in range(81, 100)])


@given(
    st.sampled_from([COSINE | {"warmup": 0.3}, STABLE]), st.integers(2, 400), st.floats(0, 0.999)
)
def test_factors_stay_between_zero_and_one(schedule, steps, share):
    assert 0 <= learning_rate_factor(schedule, int(share * steps), steps) <= 1
