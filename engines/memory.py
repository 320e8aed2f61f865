"""Memory of this process: its highest resident size while something lasts."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import sys
from pathlib import Path

__all__ = ["peak_memory", "reset_peak", "trim"]


def reset_peak() -> None:
    """Begin a new measurement, where the system can (Linux); else the highest since the process began counts."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int | None:
    """Highest resident bytes since `reset_peak`; None where the system does not say."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def trim() -> None:
    """Give freed memory back to the system, as far as its allocator lets."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
