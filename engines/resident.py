"""Resident memory: pages of weight files that have been read into an engine's own form are given back.

An engine maps the file of weights and packs it into its own layout, after which the mapped pages are not used again,
but still count as memory of the process until the system is short of it. Here they are given back at once. They are
clean pages of a read-only mapping: whoever touches one again gets it from the file. The advice used, MADV_PAGEOUT of
Linux 5.4, loses nothing even if another thread has meanwhile put something else at an address; MADV_DONTNEED would.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

__all__ = ["dropped", "mapped_pages"]

_PAGEOUT = 21
_INTERVAL = 0.1
"""Seconds between two looks while a network is compiled: a gigabyte or so is packed meanwhile."""


def mapped_pages(paths: Iterable[Path]) -> list[tuple[int, int]]:
    """(address, length) of read-only mappings of these files, deleted ones too; none where there is no ``/proc``."""
    wanted = {str(path.resolve()) for path in paths}
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = list[tuple[int, int]]()
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].removesuffix(" (deleted)") in wanted and fields[1].startswith("r--"):
            start, end = (int(part, 16) for part in fields[0].split("-"))
            found.append((start, end - start))
    return found


@contextmanager
def dropped(paths: Iterable[Path]) -> Generator[None]:
    """While this lasts, and once more at its end, mapped pages of these files are given back; only on Linux."""
    if sys.platform != "linux":
        yield
        return
    files, done = tuple(paths), threading.Event()
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def drop() -> None:
        for address, length in mapped_pages(files):
            advise(address, length, _PAGEOUT)  # an older system refuses, and the pages stay

    def watch() -> None:
        while not done.wait(_INTERVAL):
            drop()

    thread = threading.Thread(target=watch, name="sfumato-dropped", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        drop()
