"""Mapped weights are given back, and nothing is lost."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sfumato.engines.resident import dropped, mapped_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SIZE = 32 << 20


def resident(path: Path) -> int:
    """Bytes of this file that are in this process's memory."""
    inside, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and fields[0] == "Rss:":
            total += int(fields[1]) * 1024
    return total


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "unet.weights"
    np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8).tofile(path)
    with path.open("rb+") as handle:  # pages that are still to be written are not given back
        os.fsync(handle.fileno())
    return path


def test_pages_are_given_back_and_come_back_the_same(file: Path) -> None:
    mapped = np.memmap(file, mode="r")
    before = mapped.copy()
    if resident(file) < SIZE // 2:
        pytest.skip("this system keeps mapped pages out of the process's memory")
    with dropped([file]):
        pass
    assert resident(file) < SIZE // 2
    np.testing.assert_array_equal(mapped, before)


def test_only_the_files_named_are_touched(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.weights"
    other.write_bytes(bytes(4096))
    kept, written = np.memmap(other, mode="r"), np.memmap(file, mode="r+")
    assert mapped_pages([file]) == []  # a mapping that can be written is never given back
    (address, length), *rest = mapped_pages([other])
    assert not rest
    assert (address, length) == (kept.ctypes.data, 4096)
    del written


def test_pages_go_while_it_lasts(file: Path) -> None:
    mapped = np.memmap(file, mode="r")
    with dropped([file]):
        assert int(mapped[::4096].sum(dtype=np.int64)) > 0
        deadline = time.monotonic() + 10
        while resident(file) > SIZE // 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert resident(file) <= SIZE // 2


def test_an_error_inside_is_passed_on(file: Path) -> None:
    with pytest.raises(RuntimeError, match="compile"), dropped([file]):
        raise RuntimeError("compile")
