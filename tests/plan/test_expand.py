from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.config.catalog import Catalog, load_catalog, load_optimizers
from harness.plan.expand import expand
from harness.plan.identity import digest

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog(CONFIG, "smoke")


def with_optimizer(catalog: Catalog, tmp_path: Path, name: str) -> Catalog:
    added = {name: {"class": "pytorch_optimizer.Adan", "arguments": {"weight_decay": 0.02},
                    "tune": {"lr": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]}}}  # fmt: skip
    path = tmp_path / "optimizers.yaml"
    path.write_text((CONFIG / "optimizers.yaml").read_text() + "\n" + yaml.safe_dump(added))
    fields = {key: getattr(catalog, key) for key in catalog.__dataclass_fields__}
    return Catalog(**fields | {"optimizers": load_optimizers(path)})


def test_an_added_optimizer_adds_jobs_and_changes_no_training_job(catalog, tmp_path):
    before = {name for name, job in expand(catalog).items() if job.stage in ("tune", "train")}
    after = {
        name
        for name, job in expand(with_optimizer(catalog, tmp_path, "adan")).items()
        if job.stage in ("tune", "train")
    }
    assert before < after
    assert {name.split(".")[3].split("-")[0] for name in after - before} == {"adan"}


def test_every_need_is_a_job_and_comes_first(catalog):
    jobs = expand(catalog)
    order = list(jobs)
    for name, job in jobs.items():
        for other in (*job.needs, *job.after):
            assert order.index(other) < order.index(name)


def test_every_optimizer_gets_the_same_trials_and_seeds(catalog):
    counts: dict[tuple, int] = {}
    for job in expand(catalog).values():
        if job.stage in ("tune", "train"):
            for item in job.work:
                key = (job.experiment, item.role, item.factors.optimizer)
                counts[key] = counts.get(key, 0) + 1
    for experiment in ("language_optimizers", "image_optimizers"):
        for role, expected in (("tuning", 5), ("reporting", 3)):
            assert {n for (e, r, _), n in counts.items() if (e, r) == (experiment, role)} == {
                expected
            }


def test_names_and_presentation_do_not_enter_a_specification(catalog):
    for job in expand(catalog).values():
        if job.stage == "tune":
            for item in job.work:
                assert item.factors.optimizer not in item.spec
                assert not {"title", "question", "scale", "threads"} & set(item.spec)


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        max_size=5,
    )
)
def test_a_digest_depends_on_content_and_not_on_order(spec):
    assert digest(spec) == digest(dict(reversed(spec.items())))
    assert digest(spec) != digest(spec | {"another key": 1})
