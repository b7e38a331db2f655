"""What was cut into parts comes back, byte for byte, and damage is named before it is unpacked."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bundle import unbundle as script
from harness.bundle.parts import write_parts
from harness.bundle.unbundle import BundleError, unbundle


def make_tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("run")
        entry.size, entry.mode = 3, 0o755
        tar.addfile(entry, io.BytesIO(b"run"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "run"
        tar.addfile(link)


def make_bundle(folder: Path, contents: dict[str, bytes], part_size: int) -> Path:
    """Write a bundle with a small checkout and files of these contents."""
    sources, bundle = folder / "sources", folder / "bundle"
    for made in (sources, bundle):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
    make_tar(sources / "tar")
    files = {"checkout.tar": sources / "tar"}
    for index, (path, content) in enumerate(contents.items()):
        files[path] = sources / str(index)
        files[path].write_bytes(content)
    manifest = {"commit": "0123456789abcdef", "python": "3.12", "without": ["torch"]}
    manifest |= write_parts(files, bundle, part_size)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def read(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@given(st.lists(st.binary(max_size=3000), max_size=5), st.integers(500, 20_000))
def test_any_files_come_back_from_parts_of_any_size(tmp_path_factory, contents, part_size):
    folder = tmp_path_factory.mktemp("case")
    files = {f"wheels/{index}": content for index, content in enumerate(contents)}
    bundle = make_bundle(folder, files, part_size)
    sizes = [path.stat().st_size for path in sorted(bundle.glob("part-*.bin"))]
    assert all(size == part_size for size in sizes[:-1])
    assert 0 < sizes[-1] <= part_size
    unbundle(bundle, folder / "out")
    assert read(folder / "out") == files | {"checkout/run": b"run"}


@pytest.fixture
def bundle(tmp_path):
    files = {"data/text-0123/train.bin": bytes(9000), "wheels/a.whl": b"wheel"}
    return make_bundle(tmp_path, files, 4000)


def test_modes_and_links_of_the_checkout_come_back(bundle, tmp_path):
    unbundle(bundle, tmp_path / "out")
    assert os.access(tmp_path / "out/checkout/run", os.X_OK)
    assert os.readlink(tmp_path / "out/checkout/link") == "run"


def test_data_lie_where_the_workflow_looks_for_them(bundle, tmp_path):
    unbundle(bundle, tmp_path / "out")
    path = tmp_path / "out/checkout/results/data/text-0123/train.bin"
    assert path.read_bytes() == bytes(9000)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["checkout", "wheels"]


def damage(bundle: Path) -> None:
    (bundle / "part-0001.bin").unlink()
    with (bundle / "part-0002.bin").open("r+b") as file:
        file.truncate(17)
    content = bytearray((bundle / "part-0004.bin").read_bytes())
    content[5] ^= 1
    (bundle / "part-0004.bin").write_bytes(content)


def test_every_part_that_is_not_whole_is_named_and_nothing_unpacked(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(BundleError) as caught:
        unbundle(tmp_path / "copy", tmp_path / "out")
    parts = len(list(bundle.glob("part-*.bin")))
    assert str(caught.value) == (
        f"{tmp_path / 'copy'}: 3 of {parts} parts to copy again: part-0001.bin (missing), "
        "part-0002.bin (17 of 4000 bytes), part-0004.bin (damaged)"
    )
    assert not list(tmp_path.glob("out*"))
    for name in ("part-0001.bin", "part-0002.bin", "part-0004.bin"):
        shutil.copyfile(bundle / name, tmp_path / "copy" / name)
    unbundle(tmp_path / "copy", tmp_path / "out")
    assert (tmp_path / "out/wheels/a.whl").read_bytes() == b"wheel"


def test_an_interrupted_unpacking_is_repeated_from_its_start(bundle, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", stop)
        with pytest.raises(KeyboardInterrupt):
            unbundle(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    unbundle(bundle, tmp_path / "out")
    assert (tmp_path / "out/checkout/run").exists()


def test_a_folder_with_something_in_it_is_left_alone(bundle, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(BundleError, match="out: exists; expected a new folder or an empty one"):
        unbundle(bundle, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "missing"), ("{", "damaged; copy it"), ("{}", "damaged; copy it")],
)
def test_a_manifest_that_is_not_whole_is_named(content, message, bundle, tmp_path):
    (bundle / "manifest.json").unlink()
    if content is not None:
        (bundle / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=rf"manifest\.json: {message}"):
        unbundle(bundle, tmp_path / "out")


def test_a_file_in_place_of_a_bundle_is_named(tmp_path):
    (tmp_path / "README.md").touch()
    with pytest.raises(BundleError, match=r"README\.md/manifest\.json: missing; expected a folder"):
        unbundle(tmp_path / "README.md", tmp_path / "out")


def test_a_file_that_would_leave_the_folder_is_refused(tmp_path):
    bundle = make_bundle(tmp_path, {"../escaped": b"x"}, 4000)
    with pytest.raises(BundleError, match=r"found a file outside of the bundle, '\.\./escaped'"):
        unbundle(bundle, tmp_path / "out")
    assert not (tmp_path / "escaped").exists()


def test_the_script_alone_unpacks_beside_it_without_site_packages(bundle, tmp_path):
    shutil.copyfile(script.__file__, bundle / "unbundle.py")
    # Isolated and without site-packages: Python's own library is all that it sees.
    command = [sys.executable, "-I", "-S", "unbundle.py", "--output", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=True)
    assert "pip install --no-index --find-links ../wheels -e ." in result.stdout
    assert "python3.12 -m venv --system-site-packages" in result.stdout
    assert (tmp_path / "out/checkout/run").read_bytes() == b"run"
    again = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1
