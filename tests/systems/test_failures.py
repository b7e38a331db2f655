"""Failures against published optima, numerical minima and devices that are drawn one by one."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from record_values import assert_told_apart
from scipy import stats
from scipy.optimize import minimize_scalar

from harness.config.claims_schema import load_claims
from harness.config.yaml_file import read_yaml
from harness.errors import UserError
from harness.reporting.claims import judge
from harness.systems.failure_evidence import failures
from harness.systems.failure_simulation import Cluster, failed_share, simulated_goodput
from harness.systems.failures import (
    Recovery,
    any_failure,
    best_interval,
    daly_interval,
    goodput,
    mean_time_between_failures,
    spares_needed,
    young_interval,
)
from paper_figures import failures as figure

CONFIG = Path(__file__).parents[2] / "config"
ARGUMENTS = read_yaml(CONFIG / "experiments" / "failures.yaml")["arguments"]
SMALL = {
    "probability": ARGUMENTS["probability"] | {"devices": [1, 64, 2048], "trials": 200},
    "checkpoints": ARGUMENTS["checkpoints"] | {"devices": [64, 512], "stretches": 50},
}
MINUTES = st.floats(0.1, 1e4)
SHARES = st.floats(1e-9, 0.9)


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return failures(**ARGUMENTS | SMALL)


def test_no_two_records_are_told_apart_by_nothing(records):
    assert_told_apart(records)


@given(SHARES, st.integers(1, 10**6))
def test_any_failure_is_one_minus_none(share, devices):
    found = any_failure(share, devices)
    assert found == pytest.approx(stats.binom.sf(0, devices, share), rel=1e-9)
    assert share <= found * (1 + 1e-12)
    assert found <= min(1, devices * share) * (1 + 1e-12)


@given(SHARES, st.integers(1, 10**5))
def test_more_devices_fail_more_often(share, devices):
    assert any_failure(share, devices + 1) >= any_failure(share, devices)


def test_failures_in_a_while_follow_from_the_time_between_them():
    # Devices that live 10,000 h fail within an hour with 1 - exp(-1e-4).
    hour = -np.expm1(-1e-4)
    between = mean_time_between_failures(10_000, 2048)
    assert any_failure(hour, 2048) == pytest.approx(-np.expm1(-1 / between))


@pytest.mark.parametrize(("hours", "minutes"), [(24, 117), (6, 57), (0.25, 9.1)])
def test_daly_s_published_optima(hours, minutes):
    # Daly 2006, figures 3 to 5: checkpoints of 5 minutes.
    digits = 0.5 if minutes > 10 else 0.05
    assert daly_interval(5, 60 * hours) == pytest.approx(minutes, abs=digits)
    assert best_interval(Recovery(checkpoint=5, restart=10), 60 * hours) == pytest.approx(
        minutes, rel=0.01
    )


@given(MINUTES, MINUTES)
def test_the_best_interval_is_a_minimum_of_the_complete_model(checkpoint, between):
    assume(checkpoint < 5 * between)
    recovery = Recovery(checkpoint=checkpoint, restart=1)
    best = best_interval(recovery, between)
    found = minimize_scalar(lambda tau: -goodput(tau, recovery, between),
                            bounds=(0.01 * best, 10 * best), method="bounded",
                            options={"xatol": 1e-6 * best})  # fmt: skip
    assert best == pytest.approx(found.x, rel=1e-2)
    for factor in (0.5, 0.9, 1.1, 2):
        assert goodput(best, recovery, between) >= goodput(factor * best, recovery, between)


@given(st.floats(1e-6, 1e-3))
def test_young_daly_and_the_optimum_agree_if_checkpoints_are_short(checkpoint):
    exact = best_interval(Recovery(checkpoint=checkpoint, restart=0), 1.0)
    assert young_interval(checkpoint, 1.0) == pytest.approx(exact, rel=0.05)
    # The series leaves out powers of delta / 2M above the first.
    assert daly_interval(checkpoint, 1.0) == pytest.approx(exact, rel=2e-5)


@given(MINUTES, st.floats(0, 100), MINUTES, st.floats(0.1, 1e4))
def test_goodput_is_a_share_that_falls_with_every_loss(checkpoint, restart, between, interval):
    share = goodput(interval, Recovery(checkpoint=checkpoint, restart=restart), between)
    assert 0 <= share < 1
    slower = Recovery(checkpoint=2 * checkpoint, restart=restart + 1)
    assert goodput(interval, slower, between) <= share
    assert goodput(interval, Recovery(checkpoint=checkpoint, restart=restart), between / 2) <= share


def test_without_failures_only_checkpoints_are_lost():
    share = goodput(9, Recovery(checkpoint=1, restart=5), 1e12)
    assert share == pytest.approx(0.9)


@pytest.mark.parametrize(("devices", "lifetime"), [(1, 3.0), (16, 100.0), (16, 20.0)])
def test_complete_model_is_what_jobs_reach_whose_devices_are_drawn(devices, lifetime):
    recovery = Recovery(checkpoint=0.2, restart=0.5)
    runs = [simulated_goodput(1.0, recovery, Cluster(devices, lifetime, np.random.default_rng(s)),
                              stretches=1500) for s in range(8)]  # fmt: skip
    expected = goodput(1.0, recovery, mean_time_between_failures(lifetime, devices))
    # Four standard errors of the mean.
    assert np.mean(runs) == pytest.approx(expected, abs=4 * np.std(runs, ddof=1) / 8**0.5)


@pytest.mark.parametrize(("share", "devices"), [(0.01, 64), (0.001, 512), (0.3, 2)])
def test_closed_form_is_the_share_of_drawn_failures(share, devices):
    trials = 4000
    found = failed_share(share, devices, trials, np.random.default_rng(0))
    expected = any_failure(share, devices)
    error = 4 * (expected * (1 - expected) / trials) ** 0.5
    assert found == pytest.approx(expected, abs=error)


@given(st.floats(1e-5, 0.3), st.integers(1, 3000), st.floats(0.5, 0.999))
def test_spares_are_the_fewest_that_are_enough(share, devices, confidence):
    spares = spares_needed(share, devices, confidence)
    assert stats.binom.cdf(spares, devices + spares, share) >= confidence * (1 - 1e-9)
    if spares:
        one_less = stats.binom.cdf(spares - 1, devices + spares - 1, share)
        assert one_less < confidence * (1 + 1e-9)


def test_the_ledger_has_this_verdict(records, results_of):
    claim = load_claims(CONFIG / "claims.yaml")["ds.robustness.failures"]
    rows = list(judge("ds.robustness.failures", claim, results_of("failures", records)))
    assert [row["verdict"] for row in rows] == ["reproduced"] * 3


def test_figure_draws_lines_and_every_simulated_point(records, results_of):
    [(_, drawn)] = figure.draw(results_of("failures", records)).values()
    left = drawn.axes[0]
    dots = sum(len(line.get_xdata()) for line in left.lines if line.get_marker() == ".")
    assert dots == 3 * 3 * len(ARGUMENTS["probability"]["seeds"])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("probability", "probabilities"), [1.0], "probability.probabilities"),
        (("probability", "devices"), [], "probability.devices: found"),
        (("checkpoints", "lifetimes"), [0], "checkpoints.lifetimes"),
        (("checkpoints", "recoveries", "fast"), {"checkpoint": 1}, "fast.restart: required key"),
        (("spares", "confidence"), 1, "spares.confidence: found 1"),
        (("spares", "confidense"), 1, "unknown key 'confidense'.*mean 'confidence'"),
    ],
)
def test_bad_arguments_are_named(path, value, message):
    changed = deepcopy(ARGUMENTS)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(UserError, match=message):
        failures(**changed)
