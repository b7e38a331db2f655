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
    "unknown optimizer beside all": (
        "experiments/gradient_outliers.yaml",
        {"optimizers": ["all", "root_treshold_only"]},
        ["gradient_outliers.yaml: optimizers", "found 'root_treshold_only'"],
    ),
    "misspelt all": (
        "experiments/gradient_outliers.yaml",
        {"optimizers": ["al", "muon"]},
        ["gradient_outliers.yaml: optimizers: found 'al'", "'all'"],
    ),
    "unknown base of an experiment": (
        "experiments/root_parts.yaml",
        {"variant_of": "langauge_optimizers"},
        ["root_parts.yaml: variant_of: found 'langauge_optimizers'", "'language_optimizers'"],
    ),
    "variant of a variant": (
        "experiments/root_parts.yaml",
        {"variant_of": "gradient_outliers"},
        ["root_parts.yaml: variant_of: 'gradient_outliers' is itself a variant"],
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
    "outliers everywhere": (
        "experiments/gradient_outliers.yaml",
        {"training": {"gradient_outliers": {"fraction": 1.0}}},
        ["yaml: training.gradient_outliers.fraction: found 1.0, expected less than 1"],
    ),
    "outliers of no size": (
        "experiments/gradient_outliers.yaml",
        {"training": {"gradient_outliers": {"scale": 0}}},
        ["yaml: training.gradient_outliers.scale: found 0, expected greater than 0"],
    ),
    "unknown distribution": (
        "experiments/gradient_outliers.yaml",
        {"training": {"gradient_outliers": {"distribution": "gauss"}}},
        ["gradient_outliers.distribution: found 'gauss'", "'normal', 'laplace' or 'cauchy'"],
    ),
    "unknown key of outliers": (
        "experiments/gradient_outliers.yaml",
        {"training": {"gradient_outliers": {"scales": 3}}},
        ["gradient_outliers.yaml: training.gradient_outliers", "unknown key 'scales'", "'scale'"],
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
    "recording of an experiment that the scale has not": (
        "optimizers.yaml",
        {"root_mixed": {"calibration": {"recording": {"experiment": "language_optimisers"}}}},
        [
            "optimizers.yaml: root_mixed.calibration.recording.experiment",
            "found 'language_optimisers'",
            "'language_optimizers'",
        ],
    ),
    "recording of an optimizer that the experiment has not": (
        "optimizers.yaml",
        {"root_mixed": {"calibration": {"recording": {"optimizer": "moun"}}}},
        ["root_mixed.calibration.recording.optimizer", "found 'moun'", "'muon'"],
    ),
    "recording of a model that the experiment has not": (
        "experiments/root_calibration.yaml",
        {"models": ["decoder_small"]},
        [
            "root_recorded.calibration.recording",
            "models of 'language_optimizers'",
            "'decoder_small'",
            "decoder_tiny",
        ],
    ),
    "recording of an experiment that does not record": (
        "experiments/language_optimizers.yaml",
        {"training": {"recording_interval": None}},
        [
            "root_recorded.calibration.recording.experiment: found 'language_optimizers'",
            "expected an experiment with training.recording_interval",
        ],
    ),
    "recording of an optimizer that says nothing": (
        "optimizers.yaml",
        {"root_mixed": {"calibration": {"recording": {"optimizer": "torch_muon"}}}},
        [
            "root_mixed.calibration.recording.optimizer: found 'torch_muon'",
            "OrthogonalizedMomentum",
        ],
    ),
    "recording of what needs a recording": (
        "optimizers.yaml",
        {
            "root_mixed": {
                "calibration": {
                    "recording": {"experiment": "root_calibration", "optimizer": "root_recorded"}
                }
            }
        },
        [
            "root_mixed.calibration.recording.optimizer: found 'root_recorded'",
            "not itself calibrated on recorded matrices",
        ],
    ),
    "recording without recorded data": (
        "optimizers.yaml",
        {"root_mixed": {"calibration": {"data": "gaussian"}}},
        ["optimizers.yaml: root_mixed.calibration", "only there"],
    ),
    "unknown key of a recording": (
        "optimizers.yaml",
        {"root_mixed": {"calibration": {"recording": {"seeds": [1]}}}},
        ["optimizers.yaml: root_mixed.calibration.recording", "unknown key 'seeds'"],
    ),
    "unknown option of a calibration": (
        "optimizers.yaml",
        {"root": {"calibration": {"objectiv": "gram"}}},
        ["optimizers.yaml: root.calibration: unknown key 'objectiv'", "'objective'"],
    ),
    "recording of images": (
        "experiments/image_optimizers.yaml",
        {"training": {"recording_interval": 10}},
        ["image_optimizers.yaml", "recording_interval is for task language only"],
    ),
    "baseline that is no compared model": (
        "experiments/attention_kinds.yaml",
        {"baseline": "mhaa"},
        ["attention_kinds.yaml: baseline: found 'mhaa'", "'mha'"],
    ),
    "unknown model of a comparison": (
        "experiments/experts.yaml",
        {"models": {"dense": "decoder_tinny"}},
        ["experts.yaml: models: found 'decoder_tinny'", "'decoder_tiny'"],
    ),
    "a model twice": (
        "experiments/attention_kinds.yaml",
        {"models": {"again": "decoder_tiny"}},
        ["attention_kinds.yaml", "models names one entry twice"],
    ),
    "one rate for all optimizers": (
        "experiments/language_optimizers.yaml",
        {"learning_rate": 0.01},
        ["language_optimizers.yaml", "learning_rate is for `compare: models` only"],
    ),
    "part of a model that does not fit": (
        "models.yaml",
        {"decoder_tiny_fp8": {"linear": {"block_size": 48}}},
        [
            "models.yaml: decoder_tiny_fp8",
            "hidden_size is 64, not a multiple of linear.block_size 48",
        ],
    ),
    "an optimizer called all": (
        "optimizers.yaml",
        {"all": {"variant_of": "adamw"}},
        ["optimizers.yaml: found the name 'all', which means every entry"],
    ),
    "a name with a folder": (
        "models.yaml",
        {"../decoder": {"variant_of": "decoder_tiny"}},
        ["models.yaml: found the name '../decoder', expected letters, digits"],
    ),
    "an entry that is none": (
        "models.yaml",
        {"decoder_tiny": None},
        ["models.yaml: decoder_tiny: found None, expected a mapping"],
    ),
    "a variant of a list": (
        "optimizers.yaml",
        {"muon_jordan": {"variant_of": ["muon"]}},
        ["optimizers.yaml: muon_jordan.variant_of: found ['muon'] (did you mean 'muon'?)"],
    ),
    "infinity among arguments": (
        "optimizers.yaml",
        {"adamw": {"arguments": {"eps": float("inf")}}},
        ["optimizers.yaml: adamw.arguments.eps: found inf, expected a finite number"],
    ),
    "a rate twice": (
        "optimizers.yaml",
        {"muon": {"tune": {"lr": [0.1, 0.1, 0.1, 0.1, 0.1]}}},
        ["optimizers.yaml: muon.tune.lr: found 0.1 twice, expected distinct values"],
    ),
    "a tuning seed twice": (
        "experiments/language_optimizers.yaml",
        {"seeds": {"tuning": [100, 100]}},
        ["language_optimizers.yaml: seeds.tuning: found 100 twice"],
    ),
    "no optimizers": (
        "experiments/language_optimizers.yaml",
        {"optimizers": []},
        ["language_optimizers.yaml: optimizers: found [], expected 'all' or at least 1 item"],
    ),
    "unknown kind": (
        "experiments/language_optimizers.yaml",
        {"kind": "trian"},
        ["language_optimizers.yaml: kind: found 'trian' (did you mean 'train'?)"],
    ),
    "a key beside one with the name of the kind": (
        "experiments/bit_flips.yaml",
        {"optimizers": 3},
        ["bit_flips.yaml: optimizers: found 3, expected a mapping"],
    ),
    "misspelt argument of a function": (
        "experiments/failures.yaml",
        {"arguments": {"probabilty": {}}},
        ["failures.yaml: arguments: unknown argument 'probabilty' of ", "'probability'"],
    ),
    "misspelt argument in the scale": (
        "scales/smoke.yaml",
        {"experiments": {"failures": {"arguments": {"spaers": {}}}}},
        ["failures.yaml under scales/smoke.yaml: arguments: unknown argument 'spaers'"],
    ),
    "function that is not ours": (
        "experiments/failures.yaml",
        {"function": "os.system"},
        ["failures.yaml: arguments: unknown argument ", " of os.system (valid: command)"],
    ),
    "unknown function": (
        "experiments/failures.yaml",
        {"function": "harness.systems.failure_evidence.failurs"},
        ["failures.yaml: function: ", "has no function 'failurs' (did you mean 'failures'?)"],
    ),
    "argument that the function lacks": (
        "experiments/codec_cost.yaml",
        {"timed": False},
        ["codec_cost.yaml under", "required argument 'device' of ", " is missing"],
    ),
    "unknown rule of a claim": (
        "claims.yaml",
        {"root.loss.10b": {"rule": "valu"}},
        ["claims.yaml: root.loss.10b.rule: found 'valu', expected 'exact', 'value'"],
    ),
    "unknown scale of a claim": (
        "claims.yaml",
        {"root.loss.10b": {"scale": "papr"}},
        ["claims.yaml: root.loss.10b.scale: found 'papr' (did you mean 'paper'?)"],
    ),
    "unknown experiment of a recommendation": (
        "recommendations.yaml",
        {1: {"evidence": [{"experiment": "acumulation", "metric": "m", "says": "s"}]}},
        ["recommendations.yaml: 1.evidence.0.experiment: found 'acumulation'", "'accumulation'"],
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


def test_a_companion_is_checked_where_only_its_user_runs(config):
    change(
        config / "experiments" / "language_optimizers.yaml",
        {"optimizers": ["muon"], "baseline": "muon"},
    )
    change(config / "optimizers.yaml", {"other": {"variant_of": "adamw", "arguments": {"ep": 1}}})
    change(config / "optimizers.yaml", {"muon": {"companion": "other"}})
    assert "optimizers.yaml: other.arguments: unknown argument 'ep'" in message(config)


def test_a_folder_without_scales_is_named(tmp_path):
    assert message(
        tmp_path / "no"
    ) == f"config: found '{tmp_path / 'no'}', which has no scales; " + (
        "expected a folder like config of the checkout, with scales/smoke.yaml"
    )


def test_a_plan_for_another_machine_needs_no_data(config, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    verify(load_catalog(config, "local"), data=False)


def test_an_unknown_scale_names_the_closest(config):
    assert "found 'smokee' (did you mean 'smoke'?)" in message(config, "smokee")


def test_a_variant_inherits_and_overrides(config):
    change(config / "optimizers.yaml", {"slow": {"variant_of": "adamw", "arguments": {"eps": 0.1}}})
    catalog = load_catalog(config, "smoke")
    slow, base = catalog.optimizers["slow"], catalog.optimizers["adamw"]
    assert slow.arguments == base.arguments | {"eps": 0.1}
    assert "slow" not in catalog.optimizers_of(catalog.experiments["language_optimizers"])


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_an_experiment_inherits_what_the_scale_makes_of_its_base(config, scale):
    experiments = load_catalog(config, scale).experiments
    base, noisy = experiments["language_optimizers"], experiments["gradient_outliers"]
    changed = {"gradient_outliers": noisy.training.gradient_outliers, "recording_interval": None}
    assert base.training.model_copy(update=changed) == noisy.training
    assert (base.models, base.datasets, base.seeds) == (noisy.models, noisy.datasets, noisy.seeds)
    assert noisy.evaluation is None


def test_all_may_stand_beside_variants(config):
    path = config / "experiments" / "language_optimizers.yaml"
    every = load_catalog(config, "smoke")
    bases = every.optimizers_of(every.experiments["language_optimizers"])
    change(path, {"optimizers": ["muon_jordan", "all", "muon"]})
    catalog = load_catalog(config, "smoke")
    names = catalog.optimizers_of(catalog.experiments["language_optimizers"])
    assert names == ["muon_jordan", *bases]
