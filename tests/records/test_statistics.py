import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.records.statistics import mean_over_seeds, paired_difference

# Eighths are added and subtracted without rounding.
NUMBERS = st.integers(-800, 800).map(lambda number: number / 8)


def test_three_seeds_give_the_textbook_interval():
    found = mean_over_seeds([1.0, 2.0, 4.0])
    half = stats.t.ppf(0.975, 2) * np.std([1, 2, 4], ddof=1) / math.sqrt(3)
    assert (found.mean, found.half_width) == pytest.approx((7 / 3, half))


@pytest.mark.parametrize("count", [3, 5, 12])
def test_intervals_cover_the_truth_as_often_as_they_say(count):
    """400 samples of normal numbers; a percentile bootstrap of three covers only about 75 %."""
    generator = np.random.default_rng(count)
    samples = generator.normal(1.0, 2.0, (400, count))
    intervals = [mean_over_seeds(sample) for sample in samples[: 400 if count < 10 else 150]]
    covered = np.mean([interval.low <= 1.0 <= interval.high for interval in intervals])
    assert covered > 0.9


def test_one_seed_has_no_interval():
    found = mean_over_seeds([3.0])
    assert found.mean == 3.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@given(st.dictionaries(st.integers(0, 9), NUMBERS, min_size=2), NUMBERS)
def test_a_constant_shift_is_found_exactly_whatever_the_seeds_do(values, shift):
    shifted = {seed: value + shift for seed, value in values.items()}
    found = paired_difference(shifted, values)
    assert found.mean == pytest.approx(shift, abs=1e-9)
    assert found.half_width == pytest.approx(0, abs=1e-9)


@given(st.dictionaries(st.integers(0, 6), NUMBERS), st.dictionaries(st.integers(3, 9), NUMBERS))
def test_only_shared_seeds_are_compared(first, second):
    found = paired_difference(first, second)
    shared = first.keys() & second.keys()
    assert (found is None) == (not shared)
    if found is not None:
        assert found.count == len(shared)
        assert paired_difference(second, first).mean == pytest.approx(-found.mean, abs=1e-9)
