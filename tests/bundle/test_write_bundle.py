"""A bundle of a small repository, its data and its packages makes a checkout that git accepts."""

import json
import subprocess
from pathlib import Path

import pytest
from local_wheels import write_wheel

from harness.bundle.unbundle import unbundle
from harness.bundle.write import parse_size, prepared_folder, write_bundle
from harness.cli import main
from harness.errors import UserError

FOLDER = "text-0123456789ab"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "pyproject.toml").write_text('[project]\ndependencies = ["pydantic"]\n')
    (root / "constraints.txt").write_text("torch==2.13.0\npydantic==2.14.4\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    data = root / "results" / "data" / FOLDER
    data.mkdir(parents=True)
    for name in ("manifest.json", "train.bin", "verified.json", "progress.json", "prepare.log"):
        (data / name).write_text(name)
    (root / ".git" / "info" / "exclude").write_text("results\n")
    return root


@pytest.fixture
def packages(index) -> Path:
    write_wheel(index, "pydantic", "2.14.4")
    write_wheel(index, "setuptools", "80.0")
    return index


def write(root: Path, output: Path, **changes) -> list[str]:
    options = {"root": root, "results": root / "results", "data": ["text"], "python": "3.12",
               "platform": "manylinux_2_28_x86_64", "part_size": "20kB",
               "without": ["torch"]}  # fmt: skip
    return write_bundle(output, **options | changes)


def test_a_bundle_becomes_a_checkout_with_data_and_wheels(root, packages, tmp_path):
    lines = write(root, tmp_path / "bundle")
    commit = git(root, "rev-parse", "HEAD")
    parts = sorted(path.name for path in (tmp_path / "bundle").glob("part-*.bin"))
    assert len(parts) > 1
    assert f"{len(parts)} parts" in lines[0]
    assert f"commit {commit[:12]}, 2 wheels, 1 datasets" in lines[0]
    assert all(path.stat().st_size <= 20_000 for path in (tmp_path / "bundle").glob("part-*"))

    unbundle(tmp_path / "bundle", tmp_path / "out")
    checkout = tmp_path / "out" / "checkout"
    assert git(checkout, "rev-parse", "HEAD") == commit
    assert git(checkout, "status", "--porcelain", "--untracked-files=no") == ""
    data = checkout / "results" / "data" / FOLDER
    assert sorted(path.name for path in data.iterdir()) == ["manifest.json", "train.bin"]
    assert (data / "train.bin").read_text() == "train.bin"
    assert sorted(path.name for path in (tmp_path / "out" / "wheels").iterdir()) == [
        "pydantic-2.14.4-py3-none-any.whl",
        "setuptools-80.0-py3-none-any.whl",
    ]


def test_nothing_of_this_machine_is_in_the_checkout(root, packages, tmp_path):
    write(root, tmp_path / "bundle")
    unbundle(tmp_path / "bundle", tmp_path / "out")
    for path in (tmp_path / "out" / "checkout").rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes()
    assert not (tmp_path / "out" / "checkout" / ".git" / "hooks").exists()


def test_changes_that_are_not_committed_stay_and_are_counted(root, packages, tmp_path):
    (root / "pyproject.toml").write_text('[project]\ndependencies = []\nname = "changed"\n')
    lines = write(root, tmp_path / "bundle")
    assert "not in it: 1 files with changes that are not committed" in lines
    unbundle(tmp_path / "bundle", tmp_path / "out")
    assert "changed" not in (tmp_path / "out" / "checkout" / "pyproject.toml").read_text()


def test_a_failed_bundle_leaves_nothing(root, index, tmp_path):
    write_wheel(index, "setuptools", "80.0")
    with pytest.raises(UserError, match=r"pip download: .*pydantic==2\.14\.4"):
        write(root, tmp_path / "bundle")
    assert not list(tmp_path.glob("bundle*"))


def test_without_git_it_says_so(root, packages, tmp_path):
    (root / ".git").rename(root / "elsewhere")
    with pytest.raises(UserError, match="git rev-parse failed: fatal: not a git repository"):
        write(root, tmp_path / "bundle")


def test_the_command_unpacks_and_refuses_in_one_line(root, packages, tmp_path, capsys):
    write(root, tmp_path / "bundle")
    command = ["unbundle", str(tmp_path / "bundle"), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert "--no-index" in capsys.readouterr().out
    (tmp_path / "bundle" / "part-0001.bin").unlink()
    assert main([*command[:-1], str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert "part-0001.bin (missing)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "size"), [("60MiB", 60 << 20), ("1 GB", 10**9), ("7kB", 7000), ("2KiB", 2048)]
)
def test_sizes_are_those_of_their_units(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["60", "MiB", "0MiB", "6.5MiB", "60mib", "-1MB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(UserError, match=rf"--part-size: found '{text}', expected e\.g\. 60MiB"):
        parse_size(text)


def test_data_are_found_by_dataset_or_folder_and_refused_otherwise(tmp_path):
    for name in ("text-0123456789ab", "text-ba9876543210", "images-0123456789ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({}))
    (tmp_path / "half-0123456789ab").mkdir()
    assert prepared_folder(tmp_path, "images").name == "images-0123456789ab"
    assert prepared_folder(tmp_path, "text-ba9876543210").name == "text-ba9876543210"
    with pytest.raises(UserError, match="found several of 'text', expected one of text-0123"):
        prepared_folder(tmp_path, "text")
    with pytest.raises(UserError, match="found no 'half'"):
        prepared_folder(tmp_path, "half")
    with pytest.raises(UserError, match=r"found no 'image' .*\(did you mean 'images'\?\)"):
        prepared_folder(tmp_path, "image")
    with pytest.raises(UserError, match="expected datasets that snakemake has prepared"):
        prepared_folder(tmp_path / "none", "text")
