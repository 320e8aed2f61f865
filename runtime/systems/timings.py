"""Timings: how long each stage of a call took, and how often it ran."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType
from typing import Any, TypedDict, cast

import numpy as np

from ...engines.binding import Array
from ...engines.engine import Engine
from ...engines.manifest import NetworkSpec
from ...engines.precision import Precision

__all__ = ["Stage", "TimedEngine", "Timings"]


class Stage(TypedDict):
    """One stage: mean, standard deviation (of the population) and total in seconds, and how often it ran."""

    mean: float
    std: float
    calls: int
    total: float


class Timings:
    """Seconds of each stage, collected.

    Networks appear under their names; "total" is the whole call, so total minus the networks is the runtime's share.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}
        self._pending: list[tuple[str, Callable[[], float]]] = []

    def add(self, stage: str, seconds: float) -> None:
        """Count one run of `stage`."""
        self._seconds.setdefault(stage, []).append(seconds)

    def later(self, stage: str, seconds: Callable[[], float]) -> None:
        """Count one run of `stage` whose time is known when the summary is asked for."""
        self._seconds.setdefault(stage, [])
        self._pending.append((stage, seconds))

    @contextmanager
    def measure(self, stage: str) -> Generator[None]:
        """Count the body of a ``with`` as one run of `stage`."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(stage, perf_counter() - start)

    def summary(self) -> dict[str, Stage]:
        """Every stage, in the order of first runs."""
        for stage, seconds in self._pending:
            self.add(stage, seconds())
        self._pending.clear()
        return {name: _stage(values) for name, values in self._seconds.items()}


def _stage(values: list[float]) -> Stage:
    total = math.fsum(values)
    mean = total / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return Stage(mean=mean, std=std, calls=len(values), total=total)


def _between(begin: Any, end: Any) -> float:
    """Seconds between two events on a GPU."""
    end.synchronize()
    return float(end.elapsed(begin)) / 1000


class TimedEngine:
    """An engine whose calls are counted in `timings` under the network's name.

    Calls that a GPU carries out later are timed there, by events around them.
    """

    spec: NetworkSpec
    backend: str
    precision: Precision

    def __init__(self, engine: Engine, timings: Timings) -> None:
        self.spec, self.backend, self.precision = engine.spec, engine.backend, engine.precision
        self._engine: Any = engine
        self._timings = timings
        cuda: Any = getattr(engine, "cuda", None)
        if cuda is not None:  # as engines on a GPU have it; see `runtime.arithmetic`
            self.cuda = cuda
            self.stream: Any = getattr(engine, "stream", None)

    def __call__(self, **feeds: Array) -> dict[str, Array]:
        """Run the network; see `Engine`."""
        if not all(isinstance(cast(object, array), np.ndarray) for array in feeds.values()):
            begin = self.stream.record()
            outputs: dict[str, Array] = self._engine(**feeds)
            end = self.stream.record()
            self._timings.later(self.spec.name, lambda: _between(begin, end))
            return outputs
        start = perf_counter()
        outputs = self._engine(**feeds)
        self._timings.add(self.spec.name, perf_counter() - start)
        return outputs

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def __enter__(self) -> TimedEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
