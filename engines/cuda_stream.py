"""Streams, events and graphs: the order of work on the GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

from ..errors import EngineError, SfumatoError

__all__ = ["Event", "Graph", "Stream", "failing"]


@contextlib.contextmanager
def failing(what: str, mend: str = "") -> Generator[None]:
    """Turn whatever cuda.core raises, which has no common base but Exception, into an `EngineError`."""
    try:
        yield
    except SfumatoError:
        raise
    except Exception as error:
        raise EngineError(f"{what} ({str(error)[:600]})" + (f"; {mend}" if mend else "")) from error


class Stream:
    """A queue of work on the GPU. Get it by `Cuda.stream`.

    Arguments:
        core: cuda.core's Stream.
        timed: The options of events that measure time.
    """

    def __init__(self, core: Any, timed: Any) -> None:
        self.core = core
        self._timed = timed
        self.handle = int(core.handle)
        """The cudaStream_t."""

    def __cuda_stream__(self) -> tuple[int, int]:
        """The protocol by which other libraries take a stream."""
        return 0, self.handle

    def synchronize(self) -> None:
        """Wait until all that was enqueued is done; `EngineError` if any of it failed."""
        with failing("the GPU failed at what was enqueued before"):
            self.core.sync()

    def record(self, event: Event | None = None) -> Event:
        """Mark this point of the queue, in a new event or again in one that exists."""
        with failing("an event cannot be recorded"):
            if event is None:
                return Event(self.core.record(options=self._timed))
            self.core.record(event.core)
            return event

    def wait(self, event: Event) -> None:
        """Let what is enqueued from here on begin after `event`; the caller does not wait."""
        with failing("an event cannot be waited for"):
            self.core.wait(event.core)


class Event:
    """A point in a stream. Get it by `Stream.record`."""

    def __init__(self, core: Any) -> None:
        self.core = core

    def synchronize(self) -> None:
        """Wait until all before it is done."""
        with failing("the GPU failed at what was enqueued before"):
            self.core.sync()

    def elapsed(self, since: Event) -> float:
        """Milliseconds from `since` to this event, both past."""
        with failing("the time between two events is not known yet", "synchronize() the later one first"):
            return float(self.core - since.core)


class Graph:
    """Recorded work, launched as one. Get it by `Cuda.capture`."""

    def __init__(self, core: Any, work: Callable[[], None]) -> None:
        self.core = core
        self._work: Any = work  # keeps alive what the graph reads and writes

    def launch(self, stream: Stream) -> None:
        """Enqueue the whole of it."""
        with failing("a CUDA graph cannot be launched"):
            self.core.launch(stream.core)

    def close(self) -> None:
        """Free it, and let go of the memory it works on. Closing twice is harmless."""
        if self._work is not None:
            self._work = None
            self.core.close()
