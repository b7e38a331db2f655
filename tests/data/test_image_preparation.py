"""Images that cannot be prepared are refused in one line; prepared ones are not overwritten."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from harness.data.images import prepare_images
from harness.errors import UserError


def png(seed: int, size: int = 4) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def write(path: Path, images: list[Any], labels: list[Any]) -> None:
    table = {"img": images, "label": pyarrow.array(labels)}
    pyarrow.parquet.write_table(pyarrow.table(table), path)


IMAGES, LABELS = [png(seed) for seed in range(8)], [0, 1] * 4


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for split in ("train", "test"):
        write(folder / f"{split}.parquet", IMAGES, LABELS)
    return folder


@pytest.fixture
def spec(source) -> dict[str, Any]:
    columns = {"image_column": "img", "label_column": "label"}
    return {"kind": "images", "source": {"type": "image_parquet", "path": str(source), **columns},
            "validation_fraction": 0.25, "test_fraction": None}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


MISTAKES = {
    "undecodable": ([*IMAGES[:7], {"bytes": b"junk", "path": None}], LABELS,
                    r"image_column: row 7 of '.*train\.parquet' is no image"),
    "truncated": ([{"bytes": IMAGES[0]["bytes"][:60], "path": None}, *IMAGES[1:]], LABELS,
                  r"row 0 of '.*' is no image"),
    "plain bytes": ([image["bytes"] for image in IMAGES], LABELS,
                    r"row 0 of '.*' holds b'.*, expected a struct whose 'bytes'"),
    "sizes": ([*IMAGES[:7], png(7, size=5)], LABELS, "row 7 of '.*' has 5x5 pixels, expected 4x4"),
    "strings": (IMAGES, ["cat", "dog"] * 4, "'label' of '.*' has type string, expected integers"),
    "negative": (IMAGES, [0, 1, -1, 1, 0, 1, 0, 1], "'label' of row 2 of '.*' holds -1, expected"),
    "null": (IMAGES, [0, 1, 1, None, 0, 1, 0, 1], "'label' of row 3 of '.*' holds None, expected"),
    "empty": (pyarrow.array([], pyarrow.struct({"bytes": pyarrow.binary()})), [],
              r"train\.parquet' has no rows"),
    "sizes of splits": ([png(seed, size=5) for seed in range(8)], LABELS,
                        "test images have 4x4 pixels, expected 5x5"),
    "classes": (IMAGES, [0] * 8, "found test label 1, expected at most 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_the_source_are_named_in_one_line(name, spec, source, tmp_path):
    images, labels, message = MISTAKES[name]
    write(source / "train.parquet", images, labels)
    with pytest.raises(UserError, match=rf"^datasets\.yaml: x\.source.*{message}") as caught:
        prepare_images(spec, tmp_path / "out", "datasets.yaml: x")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_table_is_named(spec, source, tmp_path):
    (source / "test.parquet").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"test\.parquet' is not a whole Parquet file \("):
        prepare_images(spec, tmp_path / "out", "x")


def test_prepared_images_are_not_overwritten_with_others(spec, source, tmp_path):
    prepare_images(spec, tmp_path / "out", "x")
    before = contents(tmp_path / "out")
    prepare_images(spec, tmp_path / "out", "x")
    assert contents(tmp_path / "out") == before
    write(source / "test.parquet", IMAGES, LABELS[::-1])
    with pytest.raises(UserError, match=r"^x\.source: images or labels \(test\) changed since"):
        prepare_images(spec, tmp_path / "out", "x")
    assert contents(tmp_path / "out") == before


def test_prepared_images_from_a_bundle_need_no_source(spec, source, tmp_path):
    manifest = prepare_images(spec, tmp_path / "out", "x")
    (tmp_path / "out" / "progress.json").unlink()
    source.rename(tmp_path / "elsewhere")
    assert prepare_images(spec, tmp_path / "out", "x") == manifest
