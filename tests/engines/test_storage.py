from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sfumato.engines.storage import CHUNK, atomic_write, cache_dir, copy_hashed, locked, sha256_file
from sfumato.errors import BundleError

REAL_WRITE = os.write


def full_disk_after(monkeypatch, calls):
    """Let `calls` writes pass, then say that the disk is full."""
    left = [calls]

    def write(descriptor, data):
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        return REAL_WRITE(descriptor, data)

    monkeypatch.setattr(os, "write", write)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("SFUMATO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "sfumato"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "sfumato"


def test_a_user_without_a_home_has_a_cache_too(monkeypatch, tmp_path):
    """As in a container that runs under a number no account has."""
    for name in ("SFUMATO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert cache_dir().parent == tmp_path
    assert cache_dir().name.startswith("sfumato-")


def test_hashing_streams(tmp_path):
    data = os.urandom(2 * CHUNK + 17)
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == (hashlib.sha256(data).hexdigest(), len(data))
    assert copy_hashed(tmp_path / "a", tmp_path / "b") == (hashlib.sha256(data).hexdigest(), len(data))
    assert (tmp_path / "b").read_bytes() == data


def test_a_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a"
    atomic_write(path, b"old and long")
    atomic_write(path, b"ne", memoryview(b"w"))
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda descriptor, data: REAL_WRITE(descriptor, bytes(data[:3])))
    atomic_write(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@pytest.mark.parametrize("calls", [0, 1])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, calls):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    full_disk_after(monkeypatch, calls)
    with pytest.raises(BundleError, match=re.escape(f"{path}: cannot write it (No space left on device); free space")):
        atomic_write(path, b"n" * (CHUNK + 1))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_larger_than_the_place_takes_is_told_apart_from_a_full_disk(tmp_path, monkeypatch):
    def write(descriptor, data):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(BundleError, match=r"cannot write it \(File too large\); write to a file system"):
        atomic_write(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == []


LOCKER = """
import sys, time
from sfumato.engines.storage import locked
with locked(sys.argv[1]):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process_however_that_dies(tmp_path):
    path = tmp_path / "a"
    holder = subprocess.Popen([sys.executable, "-c", LOCKER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "in\n"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(path):
        pass


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(BundleError, match="cannot write it .*choose a folder you may write to"):
        atomic_write(tmp_path / "no" / "a", b"")


CHILD = """
import sys, time
from sfumato.engines.storage import locked
for _ in range(3):
    with locked(sys.argv[1]):
        for word in ("in", "out"):
            with open(sys.argv[1], "a") as file:
                file.write(f"{sys.argv[2]} {word}\\n")
            time.sleep(0.02)
"""


def test_two_processes_take_turns(tmp_path):
    path = tmp_path / "log"
    children = [subprocess.Popen([sys.executable, "-c", CHILD, str(path), name]) for name in "ab"]
    assert [child.wait() for child in children] == [0, 0]
    lines = path.read_text().splitlines()
    assert len(lines) == 12
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert entered[1:] == " in"
        assert left == f"{entered[0]} out"


def test_a_lock_ends_with_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "a"):
            raise ZeroDivisionError


def test_where_there_can_be_no_lock_work_goes_on(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with locked(tmp_path / "file" / "below"):
        pass
