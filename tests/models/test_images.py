import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.config.base import validate
from harness.config.model_schema import ModelSpec
from harness.errors import UserError
from harness.models import build_model
from harness.models.flops import training_flops_per_example
from harness.optimizers import route_parameters

VIT = {"family": "vit", "patch_size": 4, "hidden_size": 64, "num_hidden_layers": 2,
       "num_attention_heads": 4, "intermediate_size": 128}  # fmt: skip
RESNET = {"family": "torchvision", "name": "resnet18"}
AIRBENCH = {"family": "airbench"}
DECODER = {
    "family": "decoder",
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "attention": {"kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2},
    "feed_forward": {"kind": "swiglu", "intermediate_size": 160},
}


def spec(data: dict):
    return validate(ModelSpec, data, "test")


def test_resnet18_for_small_images_has_the_known_number_of_parameters():
    model = build_model(spec(RESNET))
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_airbench_has_the_layers_of_the_released_network():
    model = build_model(spec(AIRBENCH))
    # Trained: bias of the whitening, six convolutions and their norms' biases, the head.
    trained = {"24": 24, "24x64": 13_824, "64x64": 36_864, "64x256": 147_456,
               "256x256": 3 * 589_824, "norms": 2 * (64 + 256 + 256), "head": 2_560}  # fmt: skip
    found = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found == sum(trained.values())
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(UserError, match="found images of 16 pixels, expected at least 25"):
        build_model(spec(AIRBENCH), image_size=16)


def test_whitened_patches_are_uncorrelated_with_unit_variance():
    model = build_model(spec(AIRBENCH))
    # Neighbours share most of their value, as in photographs.
    images = torch.randn(400, 3, 8, 8).cumsum(-1).cumsum(-2)
    model.whiten(images)
    torch.nn.init.zeros_(model.whitening.bias)
    with torch.no_grad():
        answers = model.whitening(images).transpose(0, 1).flatten(1)
    half = len(answers) // 2
    torch.testing.assert_close(answers[:half], -answers[half:])
    moments = answers[:half] @ answers[:half].T / answers.shape[1]
    torch.testing.assert_close(moments, torch.eye(half), rtol=0, atol=0.02)


@pytest.mark.parametrize("data", [VIT, RESNET])
def test_patches_stem_and_head_go_to_the_companion(data):
    model = build_model(spec(data))
    routes = route_parameters(model)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, route in routes.items():
        if len(shapes[name]) < 2:
            assert route == "companion"
    outside = {name for name in routes if routes[name] == "companion" and len(shapes[name]) > 1}
    assert outside in ({"patches.weight", "head.weight"}, {"network.conv1.weight",
                                                           "network.fc.weight"})  # fmt: skip


def test_a_vit_ignores_the_order_of_patches_only_through_positions():
    model = build_model(spec(VIT))
    torch.nn.init.normal_(model.head.weight)
    image = torch.randn(1, 3, 32, 32)
    moved = image.roll(4, dims=-1)
    assert not torch.allclose(model(image), model(moved))
    model.positions.zero_()
    torch.testing.assert_close(model(image), model(moved), rtol=1e-4, atol=1e-5)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(
        UserError, match="patch_size: found 4, expected a divisor of the image size 30"
    ):
        build_model(spec(VIT), image_size=30)


@pytest.mark.parametrize("data", [VIT, RESNET, AIRBENCH, DECODER])
def test_the_closed_form_of_training_flops_agrees_with_a_counter(data):
    model_spec = spec(data)
    model = build_model(model_spec)
    length = 48
    if data["family"] == "decoder":
        example = torch.randint(300, (1, length))
    else:
        example = torch.randn(1, 3, 32, 32)
    # The counter knows attention only in its plain form.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(example).sum().backward()
    expected = training_flops_per_example(model_spec, length)
    # The counter takes causal attention as a full square, and has no gradient of the input.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.06)
