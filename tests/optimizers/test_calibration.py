"""AdaNewton's calibration: its options, its cache, recorded matrices and the evidence records."""

import json
from time import perf_counter

import numpy as np
import pytest

from harness.config.base import validate
from harness.errors import UserError
from harness.numerics.orthogonalization import MUON, SCHEDULES, relative_error
from harness.numerics.polynomial_fit import fit
from harness.numerics.singular_values import gaussian_singular_values
from harness.numerics.stability import stable_up_to
from harness.optimizers import calibration
from harness.optimizers.calibration import (
    PUBLISHED,
    Calibration,
    calibrate,
    resolve_coefficients,
)
from harness.optimizers.calibration_evidence import calibration_evidence

# Relative errors computed elsewhere from singular values of full matrices after five steps.
ELSEWHERE = {
    (2048, 2048): {
        "cubic": 0.864,
        "quintic": 0.647,
        "muon": 0.2235,
        "published": 0.1986,
        "polar_express": 0.139,
        "modded_nanogpt": 0.149,
        "fitted_mean_square": 0.187,
        "unconstrained_mean_square": 0.187,
    },
    (2048, 3072): {
        "cubic": 0.852,
        "quintic": 0.601,
        "muon": 0.1839,
        "published": 0.1284,
        "polar_express": 0.0955,
        "modded_nanogpt": 0.027,
        "fitted_mean_square": 0.0485,
        "unconstrained_mean_square": 0.0485,
    },
    (2048, 8192): {
        "cubic": 0.840,
        "quintic": 0.550,
        "muon": 0.1843,
        "published": 0.0391,
        "polar_express": 0.0958,
        "modded_nanogpt": 0.017,
        "unconstrained_mean_square": 0.0125,
    },
    (2048, 16384): {
        "cubic": 0.837,
        "quintic": 0.536,
        "muon": 0.2061,
        "published": 0.0634,
        "polar_express": 0.0974,
        "modded_nanogpt": 0.018,
        "unconstrained_mean_square": 0.0044,
    },
}


RECORDING = {"experiment": "language_optimizers", "optimizer": "muon"}


def momentum(rows: int, count: int, decay: float = 0.6) -> list[np.ndarray]:
    """Return made-up spectra like those of momentum matrices: a few large values, a long tail."""
    generator = np.random.default_rng(rows)
    spectra = [
        np.sort(np.exp(-decay * np.arange(rows)) + 0.02 * generator.random(rows))
        for _ in range(count)
    ]
    return [values / np.linalg.norm(values) for values in spectra]


def recorded_spec(data: str, **others) -> dict:
    return {"data": data, "recording": RECORDING, **others}


def test_options_survive_yaml_and_json():
    spec = validate(Calibration, recorded_spec("mixed", real_to_random=[1, 3]), "here")
    assert spec.real_to_random == (1, 3)
    assert validate(Calibration, json.loads(spec.model_dump_json()), "here") == spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"data": "recorded"}, "recording is needed for data recorded and mixed, and only there"),
        ({"data": "mixed"}, "recording is needed"),
        ({"recording": RECORDING}, "recording is needed"),
        (recorded_spec("mixed", recording="tuned"), "calibration.recording: found 'tuned'"),
        (
            recorded_spec("mixed", recording=RECORDING | {"optimiser": "muon"}),
            r"calibration.recording: unknown key 'optimiser' \(did you mean 'optimizer'\?\)",
        ),
        ({"objective": "mean"}, "calibration.objective: found 'mean', expected 'mean_square',"),
        (recorded_spec("mixed", real_to_random=[1, 0]), "found 0, expected greater than 0"),
        (recorded_spec("mixed", real_to_random=[1]), "real_to_random.1: required key is missing"),
        ({"steps": 0}, "calibration.steps: found 0"),
        ({"seed": -1}, "calibration.seed: found -1"),
        ({"stabel": True}, r"unknown key 'stabel' \(did you mean 'stable'\?\)"),
    ],
)
def test_bad_options_are_refused_in_one_line(spec, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        resolve_coefficients([(4, 6)], spec, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", PUBLISHED)
def test_errors_of_published_coefficients(shape):
    found = calibrate(shape, Calibration())
    assert (found.source, found.triple) == ("published", PUBLISHED[shape])
    expected = ELSEWHERE[shape]["muon"], ELSEWHERE[shape]["published"]
    assert (found.error_muon, found.error) == pytest.approx(expected, abs=0.002)
    assert found.stable_up_to == stable_up_to(PUBLISHED[shape])
    assert found.error_recorded is found.error_recorded_muon is None


def test_fits_are_judged_on_a_spectrum_they_have_not_seen():
    shape, spec = (64, 96), Calibration(seed=7)
    found = calibrate(shape, spec)
    fresh = gaussian_singular_values(*shape, seed=8)
    assert found.source == "calibrated"
    assert found.error == relative_error(fresh, [found.triple] * 5) < found.error_muon
    assert found.error_muon == relative_error(fresh, [MUON] * 5)


def test_published_coefficients_can_be_left_out():
    found = calibrate((2048, 8192), Calibration(published=False))
    assert found.source == "calibrated"
    assert found.error < calibrate((2048, 8192), Calibration()).error


def test_recorded_matrices_are_fitted_and_judged_apart():
    shape, recorded = (24, 48), momentum(24, 6)
    plain = calibrate(shape, Calibration(), recorded)
    ours = calibrate(shape, Calibration(**recorded_spec("recorded")), recorded)
    mixed = calibrate(shape, Calibration(**recorded_spec("mixed")), recorded)
    assert ours.error_recorded < mixed.error_recorded < plain.error_recorded
    assert plain.error < mixed.error < ours.error
    held_out = [relative_error(values, [ours.triple] * 5) for values in recorded[1::2]]
    assert ours.error_recorded == pytest.approx(np.mean(held_out))
    # What is held out does not change the fit.
    others = [values if index % 2 == 0 else recorded[0] for index, values in enumerate(recorded)]
    assert calibrate(shape, Calibration(**recorded_spec("recorded")), others).triple == ours.triple


def test_weights_lead_from_gaussian_to_recorded_matrices():
    shape, recorded = (24, 48), momentum(24, 6)
    ratios = [(1, 100), (1, 3), (3, 1), (100, 1)]
    found = [
        calibrate(shape, Calibration(**recorded_spec("mixed", real_to_random=ratio)), recorded)
        for ratio in ratios
    ]
    errors = [coefficients.error_recorded for coefficients in found]
    assert errors == sorted(errors, reverse=True)


def test_a_single_recorded_matrix_is_fitted_and_judged():
    [values] = momentum(12, 1)
    found = calibrate((12, 20), Calibration(**recorded_spec("recorded")), [values])
    assert found.error_recorded == relative_error(values, [found.triple] * 5)


def test_what_was_found_is_read_from_the_cache(tmp_path, monkeypatch):
    shapes, recorded = [(12, 20), (16, 16)], {(12, 20): momentum(12, 2), (16, 16): momentum(16, 2)}
    spec = recorded_spec("mixed")
    found = resolve_coefficients(shapes, spec, tmp_path, recorded)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    with monkeypatch.context() as patch:
        patch.setattr(calibration, "calibrate", None)
        assert resolve_coefficients(shapes, spec, tmp_path, recorded) == found
    # Other values, options and data are other entries.
    changed = recorded | {(12, 20): momentum(12, 2, decay=0.5)}
    again = resolve_coefficients(shapes, spec, tmp_path, changed)
    assert again[12, 20].triple != found[12, 20].triple
    assert again[16, 16] == found[16, 16]
    assert len(list(tmp_path.iterdir())) == 3
    for other in (spec | {"real_to_random": [3, 1]}, {"stable": False}, {"objective": "gram"}):
        before = len(list(tmp_path.iterdir()))
        resolve_coefficients(shapes, other, tmp_path, recorded)
        assert len(list(tmp_path.iterdir())) == before + 2


def test_an_overflow_on_recorded_matrices_is_kept_as_infinite(tmp_path, monkeypatch):
    """Eight steps of a free Gaussian optimum take the value of a rank-one matrix out of float64."""
    monkeypatch.setattr(calibration, "fit", lambda *arguments: (2.553, -3.059, 1.588))
    recorded = {(3, 4): [np.array([0.0, 0.0, 1.0])]}
    for _ in range(2):
        found = resolve_coefficients([(3, 4)], {"steps": 8}, tmp_path, recorded)[3, 4]
        assert found.error_recorded == np.inf
        assert found.error_recorded_muon < 1
        assert found.stable_up_to == 0


def test_shapes_that_were_not_recorded_are_refused(tmp_path):
    recorded = {(6, 8): momentum(6, 2), (4, 4): momentum(4, 2)}
    message = (
        r"config/optimizers.yaml: calibration.recording: no completed run of 'muon' in "
        r"'language_optimizers' has matrices of 4 x 6 \(recorded: 4 x 4, 6 x 8\)"
    )
    with pytest.raises(UserError, match=message):
        resolve_coefficients([(6, 8), (4, 6)], recorded_spec("mixed"), tmp_path, recorded)
    with pytest.raises(UserError, match=r"\(recorded: nothing\)"):
        resolve_coefficients([(4, 6)], recorded_spec("recorded"), tmp_path)


# The matrices of a range of large language models.
LARGE = [
    *[(2048, columns) for columns in (2048, 3072, 8192, 16384)],
    *[(2560, columns) for columns in (2560, 6912, 10240)],
    *[(4096, columns) for columns in (4096, 6144, 11008, 14336, 16384)],
    *[(5120, columns) for columns in (5120, 13824)],
    *[(8192, columns) for columns in (8192, 10240, 28672)],
    *[(16384, columns) for columns in (16384, 18432, 53248)],
]


def test_twenty_large_shapes_are_calibrated_in_seconds(tmp_path):
    assert len(LARGE) == 20
    start = perf_counter()
    found = resolve_coefficients(LARGE, {"published": False}, tmp_path)
    assert perf_counter() - start < 30
    for shape, coefficients in found.items():
        assert coefficients.error < coefficients.error_muon, shape
        assert coefficients.stable_up_to > 1.03, shape
    # Square matrices of all sizes have small values that five steps cannot lift.
    square = [found[side, side].error for side in (2048, 2560, 4096, 5120, 8192, 16384)]
    assert square == sorted(square)


@pytest.fixture(scope="module")
def evidence():
    shapes = [list(shape) for shape in PUBLISHED]
    return calibration_evidence(shapes, ["mean_square"], 5, [1, 2, 3])


def test_evidence_repeats_errors_computed_elsewhere(evidence):
    errors = {}
    for record in evidence:
        if record["metric"] == "orthogonalization/error":
            labels = record["labels"]
            key = labels["rows"], labels["columns"], labels["coefficients"]
            errors.setdefault(key, {})[record["seed"]] = record["value"]
    for (rows, columns), row in ELSEWHERE.items():
        for name, expected in row.items():
            found = errors[rows, columns, name]
            assert list(found) == [1, 2, 3]
            assert list(found.values()) == pytest.approx([expected] * 3, abs=0.002), name
    assert {key[2] for key in errors} >= {"cans", "published", "fitted_mean_square"}


def test_evidence_states_coefficients_where_all_steps_share_them(evidence):
    found = {}
    for record in evidence:
        labels = record["labels"]
        assert set(labels) == {"rows", "columns", "coefficients"}
        assert record["unit"] == "1"
        if (labels["rows"], labels["columns"]) == (2048, 16384) and "seed" not in record:
            name = record["metric"].removeprefix("orthogonalization/")
            found.setdefault(labels["coefficients"], {})[name] = record["value"]
    assert set(found) == {
        "muon", "cubic", "quintic", "published", "fitted_mean_square", "unconstrained_mean_square"
    }  # fmt: skip
    assert found["muon"] == pytest.approx(
        {"a": 3.4445, "b": -4.775, "c": 2.0315, "stable_up_to": 1.2637}, abs=1e-4
    )
    assert found["unconstrained_mean_square"] == pytest.approx(
        {"a": 2.553, "b": -3.059, "c": 1.588, "stable_up_to": 0}, abs=0.01
    )
    assert found["fitted_mean_square"]["stable_up_to"] > 1.03


def test_evidence_fits_every_objective_on_a_matrix_that_is_not_judged():
    found = calibration_evidence([[8, 12]], ["minimax", "gram", "minimax"], 4, [0, 2])
    names = [record["labels"]["coefficients"] for record in found]
    fits = {"fitted_minimax", "fitted_gram", "unconstrained_minimax", "unconstrained_gram"}
    assert set(names) == {*SCHEDULES, *fits}
    # Two errors, a, b, c and the stable range.
    assert all(names.count(name) == 6 for name in fits)
    unseen = gaussian_singular_values(8, 12, seed=1)
    triple = [
        record["value"]
        for record in found
        if record["labels"]["coefficients"] == "fitted_gram" and "seed" not in record
    ][:3]
    assert triple == list(fit([(1, unseen)], 4, "gram"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shapes": []}, "calibration_evidence: shapes: "),
        ({"shapes": [[4]]}, r"shapes: found \[4\], expected \[rows, columns\]"),
        ({"shapes": ["4x6"]}, "shapes: found '4x6'"),
        ({"shapes": [[6, 4]]}, r"shapes: found \[6, 4\], expected .* 1 <= rows <= columns"),
        ({"shapes": [[0, 4]]}, r"shapes: found \[0, 4\]"),
        ({"shapes": [[2.5, 4]]}, r"shapes: found \[2.5, 4\]"),
        ({"objectives": ["minmax"]}, r"objectives: found 'minmax' \(did you mean 'minimax'\?\)"),
        ({"steps": 0}, "steps: found 0, expected greater than 0"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [1, -1]}, "seeds.*: found -1"),
        ({"seeds": ["one"]}, "seeds.*: found 'one'"),
    ],
)
def test_bad_arguments_of_the_evidence_are_refused(changed, message):
    arguments = {"shapes": [[4, 6]], "objectives": ["gram"], "steps": 5, "seeds": [1]}
    with pytest.raises(UserError, match=message) as caught:
        calibration_evidence(**arguments | changed)
    assert "\n" not in str(caught.value)
