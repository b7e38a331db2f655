import torch

from harness.training.augmentation import augment, averaged_logits

NONE = {"flip": False, "translate": 0, "cutout": 0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_flip_mirrors_some_images_and_leaves_the_others():
    images = torch.randn(64, 3, 5, 5)
    flipped = augment(images, NONE | {"flip": True}, generator())
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 10 < same.sum() < 54


def test_translate_is_one_of_the_possible_shifts():
    images = torch.randn(20, 2, 6, 6)
    moved = augment(images, NONE | {"translate": 2}, generator())
    padded = torch.nn.functional.pad(images, (2,) * 4)
    for image, frame in zip(moved, padded, strict=True):
        windows = [frame[:, r : r + 6, c : c + 6] for r in range(5) for c in range(5)]
        assert sum(torch.equal(image, window) for window in windows) == 1


def test_cutout_clears_a_square_in_all_channels():
    images = torch.ones(50, 3, 12, 12)
    cleared = (augment(images, NONE | {"cutout": 4}, generator()) == 0).all(1)
    areas = cleared.flatten(1).sum(1)
    assert areas.max() == 16
    assert areas.min() >= 4


def test_the_same_generator_state_gives_the_same_images():
    images = torch.randn(8, 3, 6, 6)
    spec = {"flip": True, "translate": 1, "cutout": 2}
    assert torch.equal(augment(images, spec, generator(5)), augment(images, spec, generator(5)))


def test_views_are_averaged_with_the_published_weights():
    images = torch.randn(3, 1, 4, 4)

    def corner(pixels):
        return pixels[:, :, 0, 0]

    mirror = (images[:, :, 0, 0] + images[:, :, 0, 3]) / 2
    assert torch.equal(averaged_logits(corner, images, "image"), images[:, :, 0, 0])
    assert torch.equal(averaged_logits(corner, images, "mirror"), mirror)
    # Shifted by one pixel, the corner shows the reflected second row and column, or the second.
    second = (images[:, :, 1, 1] + images[:, :, 1, 2]) / 2
    torch.testing.assert_close(averaged_logits(corner, images, "mirror_translate"),
                               mirror / 2 + second / 2)  # fmt: skip
