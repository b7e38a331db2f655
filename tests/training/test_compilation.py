"""Compiled layers compute what the others do, under the same names."""

from copy import deepcopy

import pytest
import torch

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.models import build_model
from harness.models.decoder import Block
from harness.training.compilation import compile_layers, set_float32_products
from tests.training.test_loop import EVERY_PART, MODEL

# Traces and differentiates like inductor, without a C++ compiler.
BACKEND = "aot_eager"
# The other parts, without the emulation of number formats, which takes long to trace.
PARTS = {key: value for key, value in EVERY_PART.items() if key not in ("linear", "combine")}
FP8 = MODEL | {"linear": {"scaling": "tensor"}}
VIT = {"family": "vit", "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1,
       "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def objective_and_gradients(model, tokens):
    torch.manual_seed(0)
    objective, _ = model.objective(tokens[:, :-1], tokens[:, 1:], 0.0)
    objective.backward()
    return objective, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("spec", "lower"),
    [(MODEL, False), (MODEL, True), (PARTS, False)],
    ids=["float32", "bfloat16", "parts"],
)
def test_objective_and_gradients_are_those_of_the_plain_model(spec, lower):
    plain = build_model(validate(ModelSpec, spec, "model"), vocab_size=61)
    compiled = deepcopy(plain)
    compile_layers(compiled, BACKEND)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    tokens = torch.randint(61, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        expected, gradients = objective_and_gradients(plain, tokens)
        found, others = objective_and_gradients(compiled, tokens)
    tolerance = 2e-2 if lower else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    for name, gradient in gradients.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(others[name], gradient, rtol=0, atol=float(tolerance * scale))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spec", [MODEL, FP8], ids=["bfloat16", "fp8"])
def test_on_a_gpu_inductor_computes_what_the_plain_model_does(spec):
    plain = build_model(validate(ModelSpec, spec, "model"), vocab_size=61).cuda()
    compiled = deepcopy(plain)
    compile_layers(compiled)
    tokens = torch.randint(61, (4, 33), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        expected, gradients = objective_and_gradients(plain, tokens)
        found, others = objective_and_gradients(compiled, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)
    for name, gradient in gradients.items():
        distance = (others[name] - gradient).norm() / gradient.norm()
        assert distance < 0.1, name


def test_what_is_compiled_is_every_dense_block_and_the_attention_of_mixtures():
    model = build_model(validate(ModelSpec, PARTS, "model"), vocab_size=61)
    compile_layers(model, BACKEND)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert len(blocks) == 4
    assert all(block.attention._compiled_call_impl is not None for block in blocks)
    assert all(block.feed_forward._compiled_call_impl is None for block in blocks)


def test_equal_blocks_are_compiled_once():
    spec = MODEL | {"num_hidden_layers": 4}
    model = build_model(validate(ModelSpec, spec, "model"), vocab_size=61)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_layers(model, backend)
    tokens = torch.randint(61, (2, 9))
    for _ in range(3):
        model.loss(tokens, tokens)
    assert len(graphs) == 1


def test_image_models_are_compiled_whole():
    model = build_model(validate(ModelSpec, VIT, "model"), image_size=8, channels=1, num_classes=3)
    images = torch.randn(2, 1, 8, 8)
    expected = model(images)
    compile_layers(model, BACKEND)
    torch.testing.assert_close(model(images), expected)


def test_float32_products_are_not_tf32():
    assert set_float32_products() == {"float32_products": "float32"}
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
