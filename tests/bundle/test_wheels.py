"""The wheels of a bundle are what the other machine lacks, for its Python and platform."""

import platform
from importlib import metadata
from pathlib import Path

import pytest
from local_wheels import write_source, write_wheel
from packaging.requirements import Requirement
from packaging.tags import platform_tags
from packaging.utils import canonicalize_name

from harness.bundle import NODE_HAS
from harness.bundle.wheels import compatible_platforms, download_wheels, missing_packages
from harness.errors import UserError

ROOT = Path(__file__).parents[2]
MANYLINUX = "manylinux_2_28_x86_64"
# Of what an image for training on GPUs was found to lack, the less obvious ones.
LACKING = {"snakemake", "lm-eval", "datasets", "pydantic", "pydantic-core", "pytorch-optimizer",
           "jsonschema", "rpds-py", "pulp", "greenlet", "typepy", "pytz", "annotated-types",
           "word2number", "snakemake-interface-storage-plugins"}  # fmt: skip


def names(pins: list[str]) -> set[str]:
    return {canonicalize_name(pin.partition("==")[0]) for pin in pins}


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_what_a_gpu_image_lacks_is_in_the_bundle_and_what_it_has_is_not(python):
    found = names(missing_packages(ROOT, NODE_HAS, python))
    assert found >= LACKING
    assert not found & {canonicalize_name(name) for name in NODE_HAS}
    # Only torch needs it.
    assert "sympy" not in found


def test_every_requirement_is_in_the_bundle_or_on_the_machine():
    found = names(missing_packages(ROOT, NODE_HAS, "3.12"))
    there = found | {"setuptools"} | {canonicalize_name(name) for name in NODE_HAS}
    for name in found:
        for requirement in map(Requirement, metadata.requires(name) or []):
            environment = {"python_version": "3.12", "python_full_version": "3.12.0", "extra": ""}
            if requirement.marker is None or requirement.marker.evaluate(environment):
                assert canonicalize_name(requirement.name) in there, (name, requirement)


def test_names_that_are_not_locked_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"--without: found 'numpi'.*\(did you mean 'numpy'\?\)"):
        missing_packages(ROOT, ["torch", "numpi"], "3.12")
    with pytest.raises(UserError, match="--without: expected torch among the names"):
        missing_packages(ROOT, ["numpy"], "3.12")


@pytest.mark.parametrize("python", ["three", "3", "3.12.1", ""])
def test_a_python_of_another_form_is_refused(python):
    with pytest.raises(UserError, match=rf"--python: found '{python}', expected e\.g\. 3\.12"):
        missing_packages(ROOT, NODE_HAS, python)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64", reason="of this machine"
)
def test_the_platforms_of_this_machine_are_those_of_packaging():
    minor = platform.libc_ver()[1].split(".")[1]
    assert compatible_platforms(f"manylinux_2_{minor}_x86_64") == list(platform_tags())


def test_a_platform_of_another_form_is_refused():
    with pytest.raises(
        UserError, match=r"--platform: found 'linux', expected e\.g\. manylinux_2_28"
    ):
        compatible_platforms("linux")


def test_wheels_are_those_of_the_other_machine(index, tmp_path):
    write_wheel(index, "pure", "1.0")
    for tag in ("cp311-cp311-manylinux_2_17_x86_64", "cp312-cp312-manylinux_2_17_x86_64",
                "cp312-cp312-manylinux_2_39_x86_64", "cp312-cp312-macosx_11_0_arm64"):  # fmt: skip
        write_wheel(index, "compiled", "1.0", tag)
    download_wheels(["pure==1.0", "compiled"], tmp_path / "wheels", "3.12", MANYLINUX)
    assert sorted(path.name for path in (tmp_path / "wheels").iterdir()) == [
        "compiled-1.0-cp312-cp312-manylinux_2_17_x86_64.whl",
        "pure-1.0-py3-none-any.whl",
    ]


def test_a_package_that_has_only_its_source_becomes_a_wheel(index, tmp_path):
    # Older ones need another package to build wheels.
    pytest.importorskip("setuptools", minversion="70.1")
    write_source(index, "spoken", "1.0", setup="py_modules=[]")
    download_wheels(["spoken==1.0"], tmp_path / "wheels", "3.12", MANYLINUX)
    [wheel] = (tmp_path / "wheels").iterdir()
    assert wheel.name == "spoken-1.0-py3-none-any.whl"


def test_a_source_that_must_be_compiled_is_refused(tmp_path, monkeypatch):
    def pip(command, *arguments):
        name = "x-1.0.tar.gz" if command == "download" else "x-1.0-cp311-cp311-linux_x86_64.whl"
        (tmp_path / name).touch()

    monkeypatch.setattr("harness.bundle.wheels._pip", pip)
    with pytest.raises(UserError, match=r"^x-1\.0\.tar\.gz: has no wheel for manylinux_2_28"):
        download_wheels(["x==1.0"], tmp_path, "3.12", MANYLINUX)


def test_a_package_that_is_nowhere_is_named_in_one_line(index, tmp_path):
    write_wheel(index, "pure", "1.0")
    with pytest.raises(UserError, match=r"pip download: .*nowhere==1\.0") as caught:
        download_wheels(["pure", "nowhere==1.0"], tmp_path / "wheels", "3.12", MANYLINUX)
    assert "\n" not in str(caught.value)
