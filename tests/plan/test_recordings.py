"""Jobs that record matrices, those that are calibrated on them, and those that judge both."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.catalog import Catalog, load_catalog
from harness.plan.expand import expand
from harness.plan.job import Job

CONFIG = Path(__file__).parents[2] / "config"
RECORDED = {"root_recorded", "root_mixed"}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog(CONFIG, "smoke")


def changed(catalog: Catalog, experiment: str, **training) -> Catalog:
    """Return the catalog with another training of one experiment."""
    before = catalog.experiments[experiment]
    after = before.model_copy(update={"training": before.training.model_copy(update=training)})
    return replace(catalog, experiments=catalog.experiments | {experiment: after})


def jobs_of(catalog: Catalog, stage: str, *optimizers: str) -> list[Job]:
    return [
        job
        for job in expand(catalog).values()
        if job.stage == stage and job.work[0].factors.optimizer in optimizers
    ]


def trained(catalog: Catalog, *optimizers: str) -> list[Job]:
    return jobs_of(catalog, "tune", *optimizers) + jobs_of(catalog, "train", *optimizers)


def specs(catalog: Catalog, *optimizers: str) -> list[dict]:
    return [
        item.spec
        for job in trained(catalog, *optimizers)
        for item in job.work
        if item.role == "tuning"
    ]


def test_what_is_recorded_comes_before_what_is_fitted_to_it(catalog):
    jobs = expand(catalog)
    order = list(jobs)
    [recording] = [
        job.name
        for job in jobs_of(catalog, "train", "muon")
        if job.experiment == "language_optimizers"
    ]
    for job in trained(catalog, *RECORDED):
        calibration = f"calibrate.decoder_tiny.{job.work[0].factors.optimizer}"
        assert recording in job.needs
        assert calibration in job.after
        assert jobs[calibration].needs == (recording,)
    for name, job in jobs.items():
        for other in (*job.needs, *job.after):
            assert order.index(other) < order.index(name)


def test_only_reported_runs_record(catalog):
    jobs = [
        job
        for job in trained(catalog, "muon", "root", *RECORDED)
        if job.experiment in ("language_optimizers", "root_calibration")
    ]
    found = {
        (item.role, item.spec["training"]["recording_interval"])
        for job in jobs
        for item in job.work
    }
    assert found == {("tuning", None), ("reporting", 5)}


def test_runs_with_recorded_coefficients_depend_on_the_recording(catalog):
    before, plain = specs(catalog, *RECORDED), specs(catalog, "root")
    assert all(len(spec["optimizer"]["recorded"]) == 1 for spec in before)
    assert all(spec["optimizer"]["recorded"] == [] for spec in plain)
    for training in ({"steps": 99}, {"recording_interval": 20}, {"gradient_clip": 2.0}):
        after = specs(changed(catalog, "language_optimizers", **training), *RECORDED)
        assert all(one not in before for one in after), training
    grid = catalog.optimizers["muon"].tune.model_copy(update={"lr": [1e-3, 3e-3, 1e-2, 0.03, 0.3]})
    muon = catalog.optimizers["muon"].model_copy(update={"tune": grid})
    other_grid = replace(catalog, optimizers=catalog.optimizers | {"muon": muon})
    assert all(one not in before for one in specs(other_grid, *RECORDED))
    assert specs(other_grid, "root") == plain


def test_how_runs_are_batched_does_not_change_runs(catalog):
    scale = catalog.scale.model_copy(update={"runs_per_job": 1})
    batched = replace(catalog, scale=scale)
    assert specs(batched, *RECORDED) == specs(catalog, *RECORDED)
    recordings = [job for job in jobs_of(batched, "train", "muon")
                  if job.experiment == "language_optimizers"]  # fmt: skip
    assert len(recordings) == 3
    for job in trained(batched, *RECORDED):
        assert {one.name for one in recordings} <= set(job.needs)


def test_a_sweep_that_fits_one_process_is_one_job(catalog):
    for size, stages in ((8, ["train"]), (7, ["train", "tune"])):
        scale = catalog.scale.model_copy(update={"runs_per_job": size})
        found = {
            job.stage: job
            for job in trained(replace(catalog, scale=scale), "muon")
            if job.experiment == "language_optimizers"
        }
        assert sorted(found) == stages
        assert [item.role for job in found.values() for item in job.work].count("tuning") == 5
        others = set(found) - {"train"}
        assert {found[stage].name for stage in others} <= set(found["train"].needs)


def test_root_and_muon_are_trained_once_for_both_experiments(catalog):
    for optimizer in ("root", "muon"):
        jobs = [job for job in trained(catalog, optimizer)
                if job.experiment in ("language_optimizers", "root_calibration")]  # fmt: skip
        assert len(jobs) == 2
        assert jobs[0].work == jobs[1].work
        assert jobs[0].name in jobs[1].after


def test_every_recorded_training_job_is_judged(catalog):
    judged = [job for job in expand(catalog).values() if job.stage == "precision"]
    reports = {job.needs[0] for job in judged}
    expected = {
        job.name
        for job in expand(catalog).values()
        if job.stage == "train"
        and job.work[0].spec["optimizer"]["parameters"] == "matrices"
        and job.work[-1].spec["training"]["recording_interval"] is not None
    }
    assert reports == expected
    names = {job.experiment: set(job.work[0].spec["calibrations"]) for job in judged}
    assert names["language_optimizers"] == {"root"}
    # Its variant without the filter has the same coefficients.
    assert names["root_parts"] == {"root"}
    assert names["root_calibration"] == {"root", *RECORDED}
