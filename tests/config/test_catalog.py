"""Every mistake a user can make in ``config/`` ends in one line that names file, key and remedy."""

import shutil
from pathlib import Path

import pytest
import yaml

from harness.config.catalog import load_catalog
from harness.config.yaml_file import merge, read_yaml
from harness.errors import UserError
from harness.plan.verify import verify

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture
def config(tmp_path) -> Path:
    return Path(shutil.copytree(CONFIG, tmp_path / "config"))


def change(path: Path, overlay: dict) -> None:
    path.write_text(yaml.safe_dump(merge(read_yaml(path), overlay)))


def message(config: Path, scale: str = "smoke") -> str:
    with pytest.raises(UserError) as caught:
        verify(load_catalog(config, scale))
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{config}/", "")


@pytest.mark.parametrize("scale", sorted(path.stem for path in CONFIG.glob("scales/*.yaml")))
def test_every_scale_loads(scale):
    assert load_catalog(CONFIG, scale).experiments


MISTAKES = {
    "unknown optimizer": (
        "experiments/language_optimizers.yaml",
        {"optimizers": ["adamw", "moun"]},
        ["experiments/language_optimizers.yaml: optimizers", "found 'moun'", "'muon'"],
    ),
    "unknown argument": (
        "optimizers.yaml",
        {"adamw": {"arguments": {"weight_decy": 0.1}}},
        ["optimizers.yaml: adamw.arguments", "'weight_decy'", "'weight_decay'"],
    ),
    "unknown class": (
        "optimizers.yaml",
        {"adamw": {"class": "torch.optim.AdamWW"}},
        ["optimizers.yaml: adamw", "'AdamWW'", "AdamW"],
    ),
    "unknown model": (
        "experiments/language_optimizers.yaml",
        {"models": ["decoder_tyni"]},
        ["models", "found 'decoder_tyni'", "'decoder_tiny'"],
    ),
    "unknown dataset": (
        "experiments/image_optimizers.yaml",
        {"datasets": ["digit"]},
        ["image_optimizers.yaml: datasets", "found 'digit'", "'digits'"],
    ),
    "unknown task": (
        "experiments/language_optimizers.yaml",
        {"evaluation": {"tasks": ["hellaswagg"]}},
        ["evaluation.tasks", "found 'hellaswagg'", "'hellaswag'"],
    ),
    "unknown key": (
        "experiments/language_optimizers.yaml",
        {"training": {"step": 3}},
        ["language_optimizers.yaml", "training", "unknown key 'step'", "'steps'"],
    ),
    "wrong type": (
        "experiments/language_optimizers.yaml",
        {"training": {"batch_size": "many"}},
        [
            "language_optimizers.yaml: training.batch_size",
            "found 'many'",
            "expected a valid integer",
        ],
    ),
    "grid of one": (
        "optimizers.yaml",
        {"muon": {"tune": {"lr": [0.01]}}},
        ["optimizers.yaml: muon.tune.lr", "found [0.01]", "at least 2"],
    ),
    "unequal budget": (
        "optimizers.yaml",
        {"muon": {"tune": {"lr": [0.01, 0.02]}}},
        ["optimizers.yaml: muon.tune.lr", "found 2 learning rates", "equal tuning budget"],
    ),
    "matrices without companion": (
        "optimizers.yaml",
        {"adamw": {"parameters": "matrices"}},
        ["optimizers.yaml: adamw", "needs `companion`"],
    ),
    "shared seeds": (
        "experiments/language_optimizers.yaml",
        {"seeds": {"reporting": [100, 1]}},
        ["seeds", "seed 100 is in both lists"],
    ),
    "wrong task for the data": (
        "experiments/language_optimizers.yaml",
        {"datasets": ["digits"]},
        ["datasets", "'digits' holds images", "expected text"],
    ),
    "missing data folder": (
        "datasets.yaml",
        {"standard_library": {"source": {"type": "local", "path": "/no/such/folder"}}},
        ["datasets.yaml: standard_library.source.path", "'/no/such/folder' does not exist"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_file_key_and_remedy(config, name):
    file, overlay, expected = MISTAKES[name]
    change(config / file, overlay)
    text = message(config)
    for part in expected:
        assert part in text


def test_relative_data_without_harness_data_says_what_to_set(config, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    assert "export HARNESS_DATA=" in message(config, "local")


def test_an_unknown_scale_names_the_closest(config):
    assert "found 'smokee' (did you mean 'smoke'?)" in message(config, "smokee")


def test_a_variant_inherits_and_overrides(config):
    change(config / "optimizers.yaml", {"slow": {"variant_of": "adamw", "arguments": {"eps": 0.1}}})
    catalog = load_catalog(config, "smoke")
    slow, base = catalog.optimizers["slow"], catalog.optimizers["adamw"]
    assert slow.arguments == base.arguments | {"eps": 0.1}
    assert "slow" not in catalog.optimizers_of(catalog.experiments["language_optimizers"])
