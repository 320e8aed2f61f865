"""Progress and Ctrl-C of a build that lasts minutes inside one call of a C++ library."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias, TypeVar

__all__ = ["OnProgress", "Tracker", "interruptible", "monitor"]

OnProgress: TypeAlias = Callable[[int, int, str], None]
"""Takes steps done, steps in all, and what is being done."""

T = TypeVar("T")
_STEPS = 1000
_POLL = 0.1
"""Seconds between two looks whether the build has ended: how long Ctrl-C may wait to be seen."""


class Tracker:
    """How far a build is: the library tells of phases within phases, each of a number of steps.

    Arguments:
        show: Told of every step. What it raises ends the build and is kept in `failure`: it is called from a thread
            of a C++ library, which no exception may cross.
    """

    def __init__(self, show: OnProgress | None = None) -> None:
        self.stopped = threading.Event()
        self.failure: BaseException | None = None
        self._show = show
        self._phases: list[tuple[str, int, int]] = []
        self._best = 0

    def start(self, name: str, steps: int) -> None:
        """A phase begins inside the last one."""
        self._phases.append((name, 0, max(1, steps)))
        self._tell()

    def step(self, name: str, index: int) -> bool:
        """Step `index` of a phase is done; False if the build is to end."""
        self._phases = [(n, index + 1 if n == name else done, steps) for n, done, steps in self._phases]
        self._tell()
        return not self.stopped.is_set()

    def finish(self, name: str) -> None:
        """A phase ends."""
        for index in range(len(self._phases) - 1, -1, -1):
            if self._phases[index][0] == name:
                del self._phases[index]
                break

    def _tell(self) -> None:
        if self._show is None or not self._phases:
            return
        fraction = 0.0
        for _, done, steps in reversed(self._phases):
            fraction = min(1.0, (done + fraction) / steps)
        self._best = max(self._best, int(_STEPS * fraction))  # a phase may be told again; a bar does not go back
        try:
            self._show(self._best, _STEPS, self._phases[-1][0])
        except BaseException as error:  # raised again by `interruptible`
            self.failure, self._show = error, None
            self.stopped.set()


def monitor(trt: Any, tracker: Tracker) -> Any:
    """An IProgressMonitor of this library that tells `tracker`. The library calls it from threads of its own."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tracker.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return tracker.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            tracker.finish(phase_name)

    return Monitor()


def interruptible(work: Callable[[], T], tracker: Tracker) -> T:
    """``work()`` in a thread, so that Ctrl-C is seen while the library is busy; it then ends at its next step.

    Ctrl-C raises nothing before the thread has ended: an exception that leaves this function earlier, at whatever
    line it strikes, would free what the library still works on. Python delivers signals to the main thread alone.

    Raises:
        KeyboardInterrupt: After the thread has ended, if the build was interrupted.
        BaseException: What ``work`` or the progress callback raised.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # it is raised again below
            failures.append(error)

    def stop(signum: int, frame: FrameType | None) -> None:
        tracker.stopped.set()

    thread = threading.Thread(target=run, name="sfumato-build", daemon=True)
    before = signal.getsignal(signal.SIGINT)
    # None: set by C code, which Python can't restore
    handled = threading.current_thread() is threading.main_thread() and before not in (signal.SIG_IGN, None)
    if handled:
        signal.signal(signal.SIGINT, stop)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(_POLL)
    finally:
        if handled:
            signal.signal(signal.SIGINT, before)
    if tracker.failure is not None:
        raise tracker.failure
    if tracker.stopped.is_set():
        if callable(before):
            before(signal.SIGINT, None)  # raises KeyboardInterrupt, unless an application put its own there
        raise KeyboardInterrupt
    if failures:
        raise failures[0]
    return results[0]
