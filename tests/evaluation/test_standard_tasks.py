"""Standard tasks from local files: what lm-eval asks with the data of the hub, and no more."""

import os
from pathlib import Path

import pytest
import yaml
from lm_eval.tasks import TaskManager
from standard_rows import GQA, STANDARD, decoder, write_rows

from harness.errors import UserError
from harness.evaluation.language_model import HarnessLM
from harness.evaluation.run import (
    LoadedTask,
    evaluate_language_model,
    load_tasks,
    requests_digest,
)
from harness.evaluation.standard_tasks import definitions, mirror_tasks, mirrored_files
from harness.files import sha256_of


def built(names: tuple[str, ...], folder: Path, mirror: Path | None):
    """Return lm-eval's tasks with their requests."""
    loaded = load_tasks(names, folder / "tasks", mirror, folder / "cache")
    tasks = {task.name: task.tasks[task.name] for task in loaded}
    for task in tasks.values():
        task.set_config("num_fewshot", 0)
        task.build_all_requests()
    return tasks


def asked(task):
    return [(instance.request_type, instance.args, instance.idx) for instance in task.instances]


@pytest.fixture(params=["parquet", "jsonl"])
def copies(request, hub, mirror, tmp_path) -> Path:
    """A mirror as `harness mirror` makes it, and one of rows that somebody wrote down."""
    if request.param == "jsonl":
        return mirror
    lines = mirror_tasks(list(STANDARD), tmp_path / "copies")
    assert lines[0] == f"{tmp_path}/copies/hellaswag.parquet: 3 rows"
    return tmp_path / "copies"


def test_requests_and_targets_equal_those_of_the_hub(hub, copies, tmp_path):
    names = tuple(STANDARD)
    of_hub = built(names, tmp_path / "hub-tasks", None)
    of_copy = built(names, tmp_path / "copy-tasks", copies)
    for name in names:
        theirs, ours = of_hub[name], of_copy[name]
        assert asked(ours) == asked(theirs)
        assert len(ours.eval_docs) == len(STANDARD[name].rows)
        for one, other in zip(ours.eval_docs, theirs.eval_docs, strict=True):
            assert {key: one[key] for key in other} == other
            assert ours.doc_to_target(one) == theirs.doc_to_target(other)
        assert ours.VERSION == theirs.VERSION
        assert ours.config.metric_list == theirs.config.metric_list
        assert requests_digest([ours]) == requests_digest([theirs])


def test_the_digest_tells_other_questions_and_other_answers(tmp_path):
    rows = STANDARD["arc_easy"].rows
    variants = {
        "same": rows,
        "order": rows[::-1],
        "answer": [rows[0] | {"answerKey": "C"}, rows[1]],
        "question": [rows[0] | {"question": "Which?"}, rows[1]],
        "unread": [row | {"more": 1} for row in rows],
    }
    found = {}
    for name, content in variants.items():
        write_rows(tmp_path / name / "arc_easy.jsonl", content)
        tasks = built(("arc_easy",), tmp_path / name, tmp_path / name)
        found[name] = requests_digest(tasks.values())
    assert found["unread"] == found["same"]
    assert len(set(found.values())) == 4


def adapter(tokenizer) -> HarnessLM:
    model = decoder(GQA, tokenizer.get_vocab_size())
    return HarnessLM(model, tokenizer, "cpu", max_length=128, batch_size=8)


def records_of(names, folder, mirror, tokenizer, documents=None):
    tasks = load_tasks(names, folder / "tasks", mirror, folder / "cache")
    return evaluate_language_model(adapter(tokenizer), tasks, documents)


def test_records_name_the_task_alike_and_say_where_documents_are_from(
    hub, mirror, tokenizer, tmp_path
):
    names = ("arc_easy", "lambada_openai")
    of_hub = records_of(names, tmp_path / "a", None, tokenizer)
    of_copy = records_of(names, tmp_path / "b", mirror, tokenizer)
    for one, other in zip(of_hub[:-1], of_copy[:-1], strict=True):
        digest = sha256_of(mirror / f"{one['metric'].split('/')[1]}.jsonl")
        assert one["labels"]["source"] == "hub"
        assert other == one | {"labels": one["labels"] | {"source": f"sha256:{digest}"}}
    assert of_hub[-1] == of_copy[-1]
    assert of_hub[-1]["metric"] == "lm_eval/average/acc"
    metrics = {record["metric"] for record in of_hub}
    assert {"lm_eval/arc_easy/acc_norm_stderr", "lm_eval/lambada_openai/perplexity"} <= metrics


def test_a_group_has_one_score_of_all_its_documents(mirror, tokenizer, tmp_path):
    alone = records_of(("arc_easy", "sciq", "boolq"), tmp_path, mirror, tokenizer)
    values = {r["metric"]: r["value"] for r in alone}
    mean = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    group = {
        "group": "three",
        "task": ["arc_easy", "sciq", "boolq"],
        "aggregate_metric_list": [mean],
        "metadata": {"version": 3},
    }
    (tmp_path / "tasks" / "three.yaml").write_text(yaml.safe_dump(group))
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    task = LoadedTask(name="three", source="hub", **{
        key: manager.load(["three"])[key] for key in ("tasks", "groups")
    })  # fmt: skip
    records = evaluate_language_model(adapter(tokenizer), [task], None)
    found = {r["metric"]: r for r in records}
    assert set(found) == {"lm_eval/three/acc", "lm_eval/three/acc_stderr", "lm_eval/average/acc"}
    record = found["lm_eval/three/acc"]
    # Two documents each.
    expected = sum(values[f"lm_eval/{name}/acc"] for name in group["task"]) / 3
    assert record["value"] == pytest.approx(expected)
    assert record["labels"]["samples"] == 6
    assert record["labels"]["task_version"] == "3"


def test_every_reading_of_an_answer_is_a_metric_of_its_own(tokenizer, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"question": "a river", "answer": "x"}])
    filters = [
        {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern,
                                   "fallback": fallback}, {"function": "take_first"}]}
        for name, pattern, fallback in (("never", "(\\Z.)", "x"), ("other", "(\\Z.)", "y"))
    ]  # fmt: skip
    task = {
        "task": "echo",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "max_gen_toks": 2},
        "filter_list": filters,
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "echo.yaml").write_text(yaml.safe_dump(task))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    loaded = LoadedTask(name="echo", source="hub", tasks=manager.load(["echo"])["tasks"], groups={})
    records = evaluate_language_model(adapter(tokenizer), [loaded], None)
    values = {r["metric"]: r["value"] for r in records if "stderr" not in r["metric"]}
    assert values == {"lm_eval/echo/exact_match,never": 1, "lm_eval/echo/exact_match,other": 0}


def test_definitions_are_those_of_lm_evals_index():
    for name in STANDARD:
        folder = definitions()[name].parent
        index = TaskManager(include_path=str(folder), include_defaults=False).task_index
        assert index[name].yaml_path == definitions()[name]
    assert "mmlu" not in definitions()


def test_missing_files_are_named_with_the_command_that_fetches_them(mirror, tmp_path):
    (tmp_path / "piqa.jsonl").write_bytes((mirror / "piqa.jsonl").read_bytes())
    with pytest.raises(UserError) as error:
        mirrored_files(["piqa", "sciq", "boolq"], tmp_path, "evaluation.mirror")
    assert str(error.value) == (
        f"evaluation.mirror: {tmp_path} lacks sciq.parquet, boolq.parquet (or .jsonl); where there "
        f"is a network, 'harness mirror --tasks sciq,boolq --output {tmp_path}' fetches what is "
        "missing"
    )


def test_two_files_for_one_task_are_refused(tmp_path):
    for suffix in ("parquet", "jsonl"):
        (tmp_path / f"piqa.{suffix}").touch()
    with pytest.raises(UserError, match=r"found both .*piqa\.parquet and piqa\.jsonl"):
        mirrored_files(["piqa"], tmp_path, "evaluation.mirror")


@pytest.mark.parametrize(("task", "hint"), [("piqaa", "did you mean 'piqa'"), ("mmlu", "mmlu")])
def test_what_is_no_single_task_has_no_mirror(tmp_path, task, hint):
    with pytest.raises(UserError, match=f"found task '{task}', expected single tasks .*{hint}"):
        mirrored_files([task], tmp_path, "evaluation.mirror")
    with pytest.raises(UserError, match=f"found '{task}', expected single tasks"):
        mirror_tasks([task], tmp_path)


def test_files_without_the_columns_of_the_hub_are_refused(tmp_path):
    write_rows(tmp_path / "piqa.jsonl", [{"question": "x", "answer": "y"}])
    with pytest.raises(UserError, match=r"piqa\.jsonl: cannot be read as task 'piqa'.*columns"):
        load_tasks(("piqa",), tmp_path / "tasks", tmp_path, tmp_path / "cache")


def test_a_mirror_keeps_what_it_has(hub, tmp_path):
    mirror_tasks(["piqa"], tmp_path / "copies")
    before = (tmp_path / "copies" / "piqa.parquet").stat().st_mtime_ns
    lines = mirror_tasks(["piqa", "boolq"], tmp_path / "copies")
    assert [line.rpartition(": ")[2] for line in lines] == ["kept", "2 rows"]
    assert (tmp_path / "copies" / "piqa.parquet").stat().st_mtime_ns == before
    assert sorted(os.listdir(tmp_path / "copies")) == ["boolq.parquet", "piqa.parquet"]


@pytest.mark.skipif("HARNESS_DATA" not in os.environ, reason="HARNESS_DATA is not set")
def test_local_copies_of_real_tasks_load(tmp_path):
    folder = Path(os.environ["HARNESS_DATA"]) / "tasks"
    names = tuple(sorted(set(STANDARD) & {path.stem for path in folder.iterdir()}))
    loaded = load_tasks(names, tmp_path / "tasks", folder, tmp_path / "cache")
    # Sizes of the published validation and test splits.
    sizes = {"hellaswag": 10042, "boolq": 3270, "piqa": 1838, "arc_easy": 2376,
             "arc_challenge": 1172, "openbookqa": 500, "winogrande": 1267,
             "lambada_openai": 5153}  # fmt: skip
    for task in loaded:
        assert len(task.tasks[task.name].eval_docs) == sizes[task.name]
