"""What the evaluation job computes of one run, and what it does not import for that."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from standard_rows import GQA, STANDARD, write_rows

from harness.config.base import validate
from harness.config.experiment_schema import Evaluation
from harness.config.model_schema import ModelSpec
from harness.data.text import prepare_text
from harness.errors import UserError
from harness.jobs import evaluate as job
from harness.models import build_model

SPECULATION = {"prompts": 1, "prompt_tokens": 8, "new_tokens": 8, "rounds": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [{"text": f"{n}: " + "a river of words, " * 80} for n in range(60)]
    write_rows(folder / "text.jsonl", rows)
    spec = {"source": {"type": "local", "path": str(folder / "text.jsonl"), "column": "text"},
            "tokenizer": {"type": "bytes"}, "validation_fraction": 0.2, "test_fraction": 0.3,
            "maximum_bytes": None}  # fmt: skip
    prepare_text(spec, folder / "prepared", "test")
    return folder / "prepared"


def scores(monkeypatch, folder, data, evaluation):
    """Return the scores of an untrained model with a module that predicts a further token."""
    spec = {"family": "decoder", "hidden_size": 16, "num_hidden_layers": 1, "attention": GQA,
            "feed_forward": {"kind": "swiglu", "intermediate_size": 16},
            "prediction": {"depth": 1}}  # fmt: skip
    torch.manual_seed(0)
    model = build_model(validate(ModelSpec, spec, "test"), vocab_size=257)
    monkeypatch.setattr(job, "load_trained", lambda folder, summary: model)
    summary = {"spec": {"training": {"sequence_length": 256}}}
    spec = validate(Evaluation, evaluation, "test").model_dump()
    return job._scores(SimpleNamespace(path=folder), summary, spec, data, "cpu")


def test_tasks_of_a_mirror_and_embedded_ones_are_scored_and_kept(
    monkeypatch, tmp_path, data, mirror
):
    evaluation = {"tasks": ["arc_easy", "heldout_continuation"], "mirror": str(mirror),
                  "documents": 4}  # fmt: skip
    found = scores(monkeypatch, tmp_path, data, evaluation)
    metrics = {record["metric"]: record for record in found}
    assert metrics["lm_eval/arc_easy/acc"]["labels"]["samples"] == len(STANDARD["arc_easy"].rows)
    assert metrics["lm_eval/heldout_continuation/acc"]["labels"]["samples"] == 4
    [path] = tmp_path.glob("evaluation-*.json")
    assert json.loads(path.read_text()) == found
    # What is there is not computed again.
    monkeypatch.setattr(job, "_task_scores", None)
    assert scores(monkeypatch, tmp_path, data, evaluation) == found


def test_a_mirror_below_harness_data_is_found(monkeypatch, tmp_path, data, mirror):
    monkeypatch.setenv("HARNESS_DATA", str(mirror.parent))
    evaluation = {"tasks": ["piqa"], "mirror": mirror.name}
    assert scores(monkeypatch, tmp_path, data, evaluation)
    with pytest.raises(UserError, match=r"evaluation.mirror: '.*elsewhere' does not exist"):
        scores(monkeypatch, tmp_path, data, evaluation | {"mirror": "elsewhere"})


def test_speculation_alone_needs_no_lm_eval(monkeypatch, tmp_path, data):
    monkeypatch.setitem(sys.modules, "harness.evaluation.run", None)
    found = scores(monkeypatch, tmp_path, data, {"speculation": SPECULATION})
    assert found
    assert not any(record["metric"].startswith("lm_eval/") for record in found)
    imports = "import sys, harness.jobs.evaluate; print('lm_eval' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True)
    assert answer.stdout == "False\n", answer.stderr


def test_an_evaluation_of_nothing_is_refused():
    with pytest.raises(UserError, match="found neither tasks nor speculation"):
        validate(Evaluation, {"documents": 3}, "test")
