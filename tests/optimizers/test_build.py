from pathlib import Path

import pytest
import torch
from torch import nn

from harness.config.base import validate
from harness.config.catalog import load_optimizers
from harness.config.model_schema import ModelSpec
from harness.errors import UserError
from harness.models import build_model
from harness.optimizers import build_optimizer, check_arguments, route_parameters

CONFIG = Path(__file__).parents[2] / "config" / "optimizers.yaml"
ENTRIES = load_optimizers(CONFIG)
TINY = {
    "family": "decoder",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "attention": {"kind": "gqa", "num_attention_heads": 2, "num_key_value_heads": 1},
    "feed_forward": {"kind": "swiglu", "intermediate_size": 16},
}

REFUSED = (
    r"^optimizer\.class: found 'torch\.optim\.Muon', which refuses a parameter of shape "
    r"\(3, 5, 4\); expected an optimizer that takes batches of matrices, such as "
    r"harness\.optimizers\.OrthogonalizedMomentum$"
)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(validate(ModelSpec, TINY, "test"), vocab_size=11)


def spec(name: str) -> dict:
    entry = ENTRIES[name]
    companion = None
    if entry.companion is not None:
        other = ENTRIES[entry.companion.use]
        companion = {"class": other.class_, "arguments": other.arguments, "lr": entry.companion.lr}
    return {
        "class": entry.class_,
        "parameters": entry.parameters,
        "arguments": entry.arguments,
        "companion": companion,
        "calibration": entry.calibration,
    }


def build(name: str, target: nn.Module):
    shapes = {tuple(sorted(p.shape)) for p in target.parameters() if p.ndim == 2}
    coefficients = dict.fromkeys(shapes, (3.0, -4.0, 1.9)) if spec(name)["calibration"] else None
    return build_optimizer(spec(name), target, 0.01, coefficients)


def train(target: nn.Module, optimizer, steps: int) -> list[float]:
    tokens = torch.arange(22).reshape(2, 11) % 11
    losses = []
    for _ in range(steps):
        loss = target.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_accepted_learns_and_repeats(name):
    check_arguments(spec(name)["class"], spec(name)["arguments"], "test")
    runs = []
    for _ in range(2):
        target = model()
        runs.append(train(target, build(name, target), 12))
    assert runs[0] == runs[1]
    assert runs[0][-1] < runs[0][0]


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_goes_on_from_its_saved_state(name):
    whole = model()
    optimizer = build(name, whole)
    losses = train(whole, optimizer, 8)
    first = model()
    part = build(name, first)
    train(first, part, 4)
    second = model(seed=1)
    rest = build(name, second)
    second.load_state_dict(first.state_dict())
    rest.load_state_dict(part.state_dict())
    assert train(second, rest, 4) == losses[4:]


class Experts(nn.Module):
    """A batch of matrices, three of 5 x 4, and one matrix."""

    companion_parameters = ()

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Parameter(torch.randn(3, 5, 4))
        self.down = nn.Parameter(torch.randn(4, 5))

    def loss(self) -> torch.Tensor:
        states = torch.ones(4) + torch.einsum("erc,c,dr->d", self.up, torch.ones(4), self.down)
        return states.square().mean()


@pytest.mark.parametrize("name", ENTRIES)
def test_experts_are_learned_or_refused_in_one_line(name):
    target = Experts()
    coefficients = {(4, 5): (3.0, -4.0, 1.9)} if spec(name)["calibration"] else None
    if name == "torch_muon":
        with pytest.raises(UserError, match=REFUSED):
            build_optimizer(spec(name), target, 0.01, coefficients)
        return
    optimizer = build_optimizer(spec(name), target, 0.01, coefficients)
    before = target.up.detach().clone()
    losses = []
    for _ in range(5):
        loss = target.loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert (target.up != before).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("torch_muon", {"adjust_lr_fn": "rms"}, "function rms is not supported"),
        ("muon", {"steps": 0}, "steps: found 0"),
        ("root", {}, "coefficients: none for matrices of 4 x 5"),
    ],
)
def test_what_is_wrong_beside_the_dimensions_of_experts_is_said_as_ever(name, arguments, message):
    entry = spec(name) | {"arguments": spec(name)["arguments"] | arguments}
    coefficients = {(1, 1): (3.0, -4.0, 1.9)} if entry["calibration"] else None
    with pytest.raises(ValueError, match=message) as caught:
        build_optimizer(entry, Experts(), 0.01, coefficients)
    assert not isinstance(caught.value, UserError)


def test_embeddings_head_and_norms_go_to_the_companion():
    routes = route_parameters(model())
    assert {name for name, route in routes.items() if route == "companion"} == {
        "embedding.weight",
        "blocks.0.attention_norm.weight",
        "blocks.0.feed_forward_norm.weight",
        "norm.weight",
        "head.weight",
    }
    optimizer = build("muon", model())
    assert set(optimizer.parts) == {"matrices", "companion"}
    assert {group["base_lr"] for group in optimizer.param_groups} == {0.01}


def test_a_companion_may_have_a_learning_rate_of_its_own():
    rates = {
        name: part.param_groups[0]["base_lr"]
        for name, part in build("muon_jordan", model()).parts.items()
    }
    assert rates == {"matrices": 0.01, "companion": 0.003}


def test_a_pattern_that_matches_nothing_is_an_error():
    target = model()
    target.companion_parameters = ("^embeding",)
    with pytest.raises(UserError, match="'\\^embeding' matches no parameter"):
        route_parameters(target)


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("torch.optim.AdamX", "torch.optim has no 'AdamX'.*'Adam"),
        ("torch.optimm.Adam", "module 'torch.optimm' cannot be imported"),
        ("torch.nn.Linear", "is not a torch.optim.Optimizer"),
        ("Adam", "cannot be imported"),
        (".optim.Adam", r"module '\.optim' cannot be imported \(TypeError: "),
    ],
)
def test_an_unusable_class_is_named(class_path, message):
    with pytest.raises(UserError, match=message):
        check_arguments(class_path, {}, "optimizers.yaml: x.arguments")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no\\nGPU')", r"\(RuntimeError: no GPU\)"),
        ("def (", r"\(SyntaxError: invalid syntax "),
        ("raise SystemExit(3)", r"\(SystemExit: 3\)"),
    ],
)
def test_a_module_that_fails_on_import_is_named_with_its_reason(
    source, reason, tmp_path, monkeypatch
):
    (tmp_path / "failing_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"^optimizers\.yaml: x\.class: found 'failing_module\.X'.*" + reason
    ) as caught:
        check_arguments("failing_module.X", {}, "optimizers.yaml: x.arguments")
    assert "\n" not in str(caught.value)
