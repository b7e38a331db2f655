"""The stable range against closed forms and against iterating every value many times."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.numerics.orthogonalization import CUBIC, MUON, QUINTIC, Triple
from harness.numerics.stability import stable_triple, stable_up_to


@pytest.mark.parametrize(
    ("triple", "expected"),
    [
        (MUON, 1.2637),
        # s (3 - s^2) / 2 ends at zero, and its fixed point attracts.
        (CUBIC, math.sqrt(3)),
        # Fixed points at s^2 = 1 and 7 / 3.
        (QUINTIC, math.sqrt(7 / 3)),
        # The optimum for 2048 x 16384 Gaussian matrices lies above the diagonal everywhere.
        ((2.553, -3.059, 1.588), 0),
        # Overshoots 1.2235, its repelling fixed point, by 0.001.
        ((3.4916, -4.8224, 2.1095), 0),
        ((3.4916, -4.8300, 2.1095), 1.2266),
        # Cubics whose peak, 2 a / 3 sqrt(a / 3 b), is below and above where they end, sqrt(a / b).
        ((2.59, -1, 0), math.sqrt(2.59)),
        ((2.61, -1, 0), 0),
        # Small values shrink: stable until the fixed point.
        ((0.5, 0.1, 0), math.sqrt(5)),
        ((0, 0.1, 0), math.sqrt(10)),
        ((0.5, 0, 0.5), 1),
        # One positive fixed point, attracting; zero further up.
        ((1.5, 0, -0.5), 3**0.25),
        ((1, 0, 0), math.inf),
        ((1.1, 0, 0), 0),
        ((-0.5, 1, 0), 0),
        ((0, 0, 0), 0),
    ],
)
def test_known_ranges(triple, expected):
    assert stable_up_to(triple) == pytest.approx(expected, abs=1e-4)


def stays(values: np.ndarray, triple: Triple, limit: float, times: int) -> np.ndarray:
    """Return which values stay positive and below ``limit`` over ``times`` iterations."""
    a, b, c = triple
    good = np.ones(values.shape, bool)
    with np.errstate(all="ignore"):
        for _ in range(times):
            square = values * values
            values = values * (a + square * (b + square * c))
            good &= (values > 0) & (values <= limit)
    return good


@given(st.floats(0.3, 4.5), st.floats(-7, 1), st.floats(-1, 3.5))
def test_ranges_agree_with_iterating(a, b, c):
    triple = a, b, c
    upper = stable_up_to(triple)
    assume(upper < math.inf)
    if upper > 0:
        within = np.linspace(0, upper, 2002)[1:-1]
        # Values that shrink to zero get lost in rounding after some hundred steps.
        assert stays(within, triple, upper * (1 + 1e-9), 300).all()
    beyond = np.concatenate([np.geomspace(1e-3, 0.1, 1000), np.linspace(0.1, 1.1, 3000)])
    beyond = upper + beyond * (upper or 1)
    assert not stays(beyond, triple, 100 * (upper or 1), 1000).all()


@given(st.tuples(*[st.floats(-4, 4)] * 3), st.sampled_from([2.0**-5, 0.2]))
def test_every_point_gives_a_stable_triple(point, margin):
    a, b, c = triple = stable_triple(np.array(point), margin)
    upper = 1 + margin + point[0] ** 2
    assert stable_up_to(triple) == pytest.approx(upper)
    s = np.linspace(0, upper, 3001)[1:-1]
    step = s * (a + b * s**2 + c * s**4)
    # Some distance to the limits is left.
    assert np.all(upper - step >= 0.99 * margin * (upper - s))
    assert np.all(step >= 0.99 * margin * s)
