"""The bench: what every part of the benchmark needs, and how much memory and time there is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers import Worker, WorkerFailed, physical_cores

__all__ = ["ANCHOR", "STEPS", "Bench", "Clock", "groups", "memory_available"]

ANCHOR = "sfumato"
STEPS = {ANCHOR: 6.5, "onnxruntime": 6.0, "torch_fp32": 4.0, "torch_bf16": 2.2, "torch_bf16_compiled": 5.0}
"""Variants of one step, with the gigabytes that each holds at full size while it waits."""
SPARE_GB = 1.0


class Clock:
    """Counts down from `minutes`."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds left, negative when over."""
        return self._end - time.monotonic()


@dataclass
class Bench:
    """What every part of the benchmark needs.

    Arguments:
        folder: The diffusers folder.
        bundle: The bundle made of it; None if the export failed, which fails sfumato's variants.
        work: For logs and outputs.
        quick: Tiny networks.
        clock: Time left.
        rounds: Most rounds.
        compile_limit: Seconds that torch.compile may take for one size.
        reserve: Seconds of the clock to keep for later parts.
        threads: Threads of every variant.
    """

    folder: Path
    bundle: Path | None
    work: Path
    quick: bool
    clock: Clock
    rounds: int
    compile_limit: float = 200.0
    reserve: float = 0.0
    threads: int = field(default_factory=physical_cores)

    def left(self) -> float:
        """Seconds that the present part may still take."""
        return self.clock.left() - self.reserve

    def open(self, kind: str, stack: ExitStack, **extra: Any) -> tuple[Worker, dict[str, Any]]:
        """A loaded worker and its answer."""
        if self.bundle is None and kind in (ANCHOR, "onnxruntime", "run_sfumato"):
            raise WorkerFailed("no bundle, the export failed")
        if kind.endswith("compiled") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise WorkerFailed("no C++ compiler on this machine")
        worker = stack.enter_context(Worker(kind, self.work / f"{kind}.log", self.threads))
        try:
            answer = worker.ask(
                "load", limit=180, watch=True, folder=str(self.folder), bundle=str(self.bundle), **extra
            )
        except WorkerFailed:
            worker.close()
            raise
        return worker, answer


def memory_available() -> float:
    """Gigabytes that new processes may take without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e9
    return 0.0


def groups(variants: Sequence[str], need: Mapping[str, float], available: float) -> list[list[str]]:
    """`variants` in groups that fit in memory at once, the first variant in every one of them.

    Arguments:
        variants: The anchor, then the others.
        need: Gigabytes of each.
        available: Gigabytes there are.
    """
    anchor, *others = variants
    room = available - SPARE_GB - need[anchor]
    result: list[list[str]] = [[anchor]]
    left = room
    for name in others:
        if need[name] > left and len(result[-1]) > 1:
            result.append([anchor])
            left = room
        result[-1].append(name)
        left -= need[name]
    return result
