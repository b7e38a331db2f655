"""A digest is computed once for a file at rest, and again whenever its content may have changed."""

import hashlib
import os
import time

import pytest

from harness.data import digests

CONTENT = b"tokens"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the files that were read."""
    names = []
    original = digests.sha256_of

    def counted(path):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(digests, "sha256_of", counted)
    return names


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "shard.bin"
    path.write_bytes(CONTENT)
    # As if the file had been at rest for a minute.
    now = time.time()
    monkeypatch.setattr(digests.time, "time", lambda: now + 60)
    return path


def test_a_file_at_rest_is_read_once(file, reads):
    assert all(digests.has_digest(file, SHA256) for _ in range(3))
    assert reads == ["shard.bin"]


def test_a_write_that_restores_the_times_is_found(file):
    assert digests.has_digest(file, SHA256)
    before = file.stat()
    file.write_bytes(b"nekots")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not digests.has_digest(file, SHA256)


def test_another_file_in_its_place_is_found(file):
    assert digests.has_digest(file, SHA256)
    other = file.with_name("other")
    other.write_bytes(b"nekots")
    os.replace(other, file)
    assert not digests.has_digest(file, SHA256)


def test_another_digest_is_not_the_noted_one(file):
    assert digests.has_digest(file, SHA256)
    assert not digests.has_digest(file, hashlib.sha256(b"x").hexdigest())


def test_a_file_that_was_just_written_is_not_noted(file, reads, monkeypatch):
    now = file.stat().st_ctime
    monkeypatch.setattr(digests.time, "time", lambda: now + 1)
    assert all(digests.has_digest(file, SHA256) for _ in range(3))
    assert len(reads) == 3


def test_a_folder_that_cannot_be_written_is_read_every_time(file, reads, monkeypatch):
    def refuse(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(digests, "write_json", refuse)
    assert all(digests.has_digest(file, SHA256) for _ in range(2))
    assert len(reads) == 2


def test_a_missing_file_has_no_digest(tmp_path):
    assert not digests.has_digest(tmp_path / "none", SHA256)
