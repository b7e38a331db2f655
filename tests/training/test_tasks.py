"""What tasks do beyond plain batches: sides of images, whitening, texts of a window."""

from pathlib import Path

import pytest
import torch

from harness.data.images import load_images, prepare_images
from harness.training.tasks import ImageTask, LanguageTask

NO_AUGMENTATION = {"flip": False, "translate": 0, "cutout": 0}
IMAGES = {"batch_size": 100, "accumulation": 1, "augmentation": None, "label_smoothing": 0.0,
          "evaluation_batches": None, "evaluation_views": "image"}  # fmt: skip
TEXT = {"batch_size": 4, "accumulation": 1, "sequence_length": 16, "evaluation_batches": 4,
        "attend_across_documents": True}  # fmt: skip
DECODER = {"family": "decoder", "hidden_size": 16, "num_hidden_layers": 1,
           "attention": {"kind": "gqa", "num_attention_heads": 2, "num_key_value_heads": 2},
           "feed_forward": {"kind": "swiglu", "intermediate_size": 16}}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    source = {"kind": "images", "source": {"type": "sklearn_digits"}, "validation_fraction": 0.1,
              "test_fraction": 0.2}  # fmt: skip
    prepare_images(source, folder, "test")
    return folder


def image_task(data: Path, seed: int = 0, **training) -> ImageTask:
    model = {"family": "airbench", "widths": [8]}
    spec = {"seed": seed, "training": IMAGES | training, "model": model}
    return ImageTask(spec, data, torch.device("cpu"))


def test_alternating_flips_show_every_image_from_both_sides_in_two_epochs(digits):
    task = image_task(digits, augmentation=NO_AUGMENTATION | {"flip": "alternate"})
    images, _ = load_images(digits, "train", torch.device("cpu"))
    plain = task._normalise(images)
    count, size = len(images), IMAGES["batch_size"]
    shown = torch.cat([task.batch(step)[0] for step in range(-(-2 * count // size))])
    order = [torch.from_numpy(task._indices(step, count)) for step in range(-(-2 * count // size))]
    indices = torch.cat(order)
    sides = torch.full((2, count), -1)
    for position in range(2 * count):
        index = int(indices[position])
        same = torch.equal(shown[position], plain[index])
        assert same or torch.equal(shown[position], plain[index].flip(-1))
        sides[position // count, index] = int(same)
    symmetric = torch.tensor([torch.equal(image, image.flip(-1)) for image in plain])
    assert (sides[0] != sides[1])[~symmetric].all()
    assert 0.4 < sides[0].float().mean() < 0.6


def test_a_network_that_whitens_does_so_to_training_images(digits):
    task = image_task(digits)
    model = task.build()
    images, _ = load_images(digits, "train", torch.device("cpu"))
    torch.nn.init.zeros_(model.whitening.bias)
    answers = model.whitening(task._normalise(images)).detach().transpose(0, 1).flatten(1)
    half = len(answers) // 2
    moments = answers[:half] @ answers[:half].T / answers.shape[1]
    torch.testing.assert_close(moments, torch.eye(half), rtol=0, atol=0.02)


def test_positions_read_their_own_text_only_if_asked_to(data):
    losses = {}
    for across in (True, False):
        training = TEXT | {"attend_across_documents": across}
        spec = {"seed": 0, "training": training, "model": DECODER}
        task = LanguageTask(spec, data, torch.device("cpu"))
        torch.manual_seed(0)
        model = task.build()
        torch.nn.init.normal_(model.head.weight)
        inputs, targets = task.batch(0)
        # Bytes of small texts: put an end into the middle of every window.
        inputs[:, 7] = task._end_of_text
        losses[across] = task.objective(model, inputs, targets, 0.0)[1].item()
        if not across:
            halves = [model.loss(inputs[:, part], targets[:, part]).item()
                      for part in (slice(0, 8), slice(8, 16))]  # fmt: skip
            assert losses[across] == pytest.approx(sum(halves) / 2, rel=1e-5)
    assert losses[True] != pytest.approx(losses[False], rel=1e-4)
