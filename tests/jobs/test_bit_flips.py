"""From bits that an experiment flips to records, a table and a figure; stopped and gone on with."""

import json
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from harness.config.catalog import load_catalog
from harness.errors import Interrupted, UserError
from harness.files import write_json
from harness.jobs import faults as job_module
from harness.jobs import run_job
from harness.jobs.collect import collect
from harness.jobs.context import Context
from harness.plan.summary import training_flops
from harness.records.store import load_records
from harness.reporting.results import Results, label
from harness.reporting.robustness_tables import fault_tables
from paper_figures import bit_flips as figure

CONFIG = Path(__file__).parents[2] / "config"
TARGETS = ["weight", "gradient", "second_moment"]
EXPERIMENT = {
    "datasets": ["spam"],
    "training": {"steps": 8, "batch_size": 2, "sequence_length": 16, "evaluation_interval": 8,
                 "evaluation_batches": 1},
    "faults": {"step": 3, "observe": 2, "targets": TARGETS, "parts": ["attention", "head"],
               "bits": ["sign", "exponent_7"], "draws": 2,
               "conditions": [{"gradient_clip": 1.0, "precision": "float32"},
                              {"gradient_clip": None, "precision": "float32",
                               "targets": ["gradient"]}]},
}  # fmt: skip
FLIPS = {("weight", 1.0): 8, ("gradient", 1.0): 8, ("second_moment", 1.0): 8,
         ("gradient", "none"): 8}  # fmt: skip


def made(folder: Path, experiment: dict = EXPERIMENT) -> Context:
    """A configuration with a small text of its own."""
    config = Path(shutil.copytree(CONFIG, folder / "config"))
    texts = folder / "texts"
    texts.mkdir()
    words = np.random.default_rng(0).choice(["spam ", "eggs ", "ham\n"], (20, 200))
    for number, document in enumerate(words):
        (texts / f"{number}.txt").write_text("".join(document))
    spam = {"kind": "text", "source": {"type": "local", "path": str(texts)},
            "tokenizer": {"type": "bytes"}, "validation_fraction": 0.2,
            "test_fraction": 0.2}  # fmt: skip
    path = config / "datasets.yaml"
    path.write_text(path.read_text() + "\n" + yaml.safe_dump({"spam": spam}))
    scale = {"description": "bit flips in a test", "device": "cpu", "runs_per_job": 1,
             "experiments": {"bit_flips": experiment}}  # fmt: skip
    (config / "scales" / "micro.yaml").write_text(yaml.safe_dump(scale))
    return Context(load_catalog(config, "micro"), folder / "results")


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    """A folder in which all jobs have run in this process."""
    context = made(tmp_path_factory.mktemp("faults"))
    for job in context.jobs.values():
        write_json(context.output(job), run_job(job, context))
    collect(context)
    return context


@pytest.fixture(scope="module")
def records(context) -> pd.DataFrame:
    frame = load_records(context.scale_folder)
    names = ("target", "part", "bit", "draw", "gradient_clip", "precision")
    return frame.assign(**{name: label(frame, name) for name in names})


def test_every_condition_is_a_job_behind_the_data(context):
    jobs = [job for job in context.jobs.values() if job.stage == "faults"]
    assert len(jobs) == 2
    assert all(context.job(job.needs[0]).stage == "prepare" for job in jobs)
    assert len({job.content for job in jobs}) == 2
    assert jobs[0].output.startswith("jobs/faults/bit_flips.decoder_tiny.spam.adamw-")


def test_every_fault_has_an_outcome(records):
    ended = records[records["metric"] == "fault/non_finite"]
    assert dict(ended.groupby(["target", "gradient_clip"]).size()) == FLIPS
    assert not ended.duplicated(["target", "part", "bit", "draw", "gradient_clip"]).any()
    assert set(ended["role"]) == {"reporting"}
    assert set(ended["step"]) == {5}
    changes = records[records["metric"] == "fault/validation_change"]
    assert len(changes) == (ended["value"] == 0).sum()


def test_the_same_course_twice_is_the_same(records):
    repeated = records[records["metric"] == "fault/repeated_change"]
    assert list(repeated["value"]) == [0, 0]


def test_clipping_is_what_differs_between_the_conditions(context):
    specs = [json.loads(path.read_text()) for path in context.results.glob("runs/*/spec.json")]
    assert sorted(str(spec["training"].pop("gradient_clip")) for spec in specs) == ["1.0", "None"]
    one, other = (spec["training"] for spec in specs)
    assert one == other


def test_a_stopped_job_goes_on_with_the_next_fault(context, tmp_path, monkeypatch):
    stopped = made(tmp_path)
    jobs = list(stopped.jobs.values())
    [job] = [job for job in jobs if job.stage == "faults"][:1]
    prepare = next(job for job in jobs if job.stage == "prepare")
    write_json(stopped.output(prepare), run_job(prepare, stopped))
    expected = context.result(next(n for n in context.jobs if n.startswith("bit_flips")))
    trained = []
    original = job_module.TrainingStep.take
    monkeypatch.setattr(job_module.TrainingStep, "take",
                        lambda *call: trained.append(call[1]) or original(*call))  # fmt: skip
    asked = count()
    with monkeypatch.context() as patch:
        patch.setattr(job_module, "stop_signals", lambda: _Stopping(lambda: next(asked) >= 8))
        with pytest.raises(Interrupted, match=r"stopped after [0-9] of 24 faults"):
            run_job(job, stopped)
    assert trained[:3] == [0, 1, 2]
    trained.clear()
    found = run_job(job, stopped)
    # The steps before the faults are not taken again.
    assert min(trained) == 3
    ours, theirs = (_without_names(result["records"]) for result in (found, expected))
    assert ours == theirs
    trained.clear()
    assert run_job(job, stopped) == found
    assert not trained


class _Stopping:
    def __init__(self, stop):
        self.stop = stop

    def __enter__(self):
        return self.stop

    def __exit__(self, *_):
        return None


def _without_names(rows: list[dict]) -> list[dict]:
    # The folder of the texts is part of the identity of data and runs.
    return [{key: value for key, value in row.items() if key != "run_id"} for row in rows]


def test_the_table_counts_them(context):
    [table] = fault_tables(Results(context.scale_folder), "bit_flips")
    counted = table.numbers.set_index(["target", "gradient_clip"])
    assert counted["flips"].to_dict() == FLIPS
    assert counted.loc[("second_moment", 1.0), "harmful_bits"] == "sign"
    assert (counted["non_finite"] <= counted["harmful"]).all()


def test_the_figure_has_a_panel_per_target_and_condition(context):
    results = Results(context.scale_folder)
    [(experiment, drawn)] = figure.draw(results).values()
    assert experiment == "bit_flips"
    titles = [ax.get_title().split("\n")[0] for ax in drawn.axes if ax.get_title()]
    assert titles == ["weight", "gradient", "second moment", "gradient"]
    assert "at step 5" in figure.caption(results)


def test_the_cost_counts_the_steps_of_all_courses(context):
    experiment = context.catalog.experiments["bit_flips"]
    # Two runs to step 3, then courses of two steps: 24 and 8 with a fault, one each without.
    steps = 2 * 3 + 2 * (24 + 1 + 8 + 1)
    least = {"step": 1, "observe": 1, "draws": 1, "bits": ["sign"], "parts": ["head"],
             "targets": ["weight"], "conditions": experiment.faults.conditions[:1]}  # fmt: skip
    faults = experiment.faults.model_copy(update=least)
    # One step to the fault, one with it and one without.
    one = experiment.model_copy(update={"faults": faults})
    assert training_flops(context.catalog, experiment) == pytest.approx(
        training_flops(context.catalog, one) / 3 * steps
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faults": {"observe": 6}}, "faults: step [+] observe is 9, expected at most training.st"),
        ({"faults": {"bits": ["exponent_8"]}}, "faults.bits.0: found 'exponent_8'"),
        ({"faults": {"parts": ["neck"]}}, "faults.parts.0: found 'neck', expected 'embedding'"),
        ({"optimizers": {"adamv": 0.1}}, "optimizers: found 'adamv' .did you mean 'adam"),
        ({"models": ["vit_digits"]}, "'vit_digits' is of family vit"),
        ({"datasets": ["digits"]}, "datasets: 'digits' holds images, expected text"),
        ({"training": {"sequence_length": None}}, "training.sequence_length: required key is miss"),
    ],
)  # fmt: skip
def test_bad_experiments_are_named(tmp_path, change, message):
    from harness.config.yaml_file import merge

    with pytest.raises(UserError, match=message):
        made(tmp_path, merge(EXPERIMENT, change))
