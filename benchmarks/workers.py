"""Workers: child processes that each hold one model and answer one question at a time.

A worker is `serve.py` in a process of its own. Questions go to its standard input and answers come back over a pipe,
one JSON object a line; what libraries print goes to a log file. While one worker answers, the others block in a read:
their thread pools sleep, and `Worker.cpu_seconds` lets the caller prove it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Worker", "WorkerFailed", "physical_cores", "process_memory"]

HERE = Path(__file__).resolve().parent
POLL = 0.05
"""Seconds between two looks at the memory of a watched worker."""


class WorkerFailed(Exception):
    """A worker refused, died or took too long; the message is fit for a table."""


class Worker:
    """A child process.

    Arguments:
        kind: Which class of `serve.py` it runs.
        log: File that takes what the child prints.
        threads: Threads for OpenMP and for the variant itself.
    """

    def __init__(self, kind: str, log: Path, threads: int) -> None:
        self.kind = kind
        self.log = log
        self.anonymous_peak = 0
        self._pending = b""
        self._answers, child_end = os.pipe()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "serve.py"), kind, str(child_end), str(threads)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[child_end],
                env=environment,
                start_new_session=True,  # so that close() also ends a compiler that the child started
            )
        os.close(child_end)

    def ask(self, question: str, *, limit: float = 600.0, watch: bool = False, **arguments: Any) -> Any:
        """The answer of the child's method `question`.

        Arguments:
            question: Name of the method.
            limit: Seconds until the child is ended and `WorkerFailed` raised.
            watch: Look at the child's memory meanwhile, see `memory`.
            arguments: Its arguments, plain JSON.

        Raises:
            WorkerFailed: It raised, died, or was too slow. A child that raised lives on.
        """
        line = json.dumps({"question": question, "arguments": arguments}) + "\n"
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(line.encode())
            stdin.flush()
        except OSError:
            raise WorkerFailed(f"{self.kind} is not running; {self._last_words()}") from None
        reply = json.loads(self._line(question, time.monotonic() + limit, limit, watch))
        if "error" in reply:
            raise WorkerFailed(reply["error"])
        return reply["answer"]

    def memory(self) -> dict[str, int]:
        """Bytes: ``peak`` (VmHWM: all resident, mapped files too), ``anonymous_peak`` (where watched), ``now``."""
        state = process_memory(self._process.pid)
        return {"peak": state["VmHWM"], "anonymous_peak": self.anonymous_peak, "now": state["VmRSS"]}

    def cpu_seconds(self) -> float:
        """User and system time that the process has used so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the child; closing twice is harmless."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self, question: str, deadline: float, limit: float, watch: bool) -> bytes:
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0:
                self.close()
                raise WorkerFailed(f"{question} took more than {limit:.0f} s and was stopped")
            ready, _, _ = select.select([self._answers], [], [], min(left, POLL if watch else left))
            if watch and self._process.poll() is None:
                with contextlib.suppress(OSError, KeyError):
                    anonymous = process_memory(self._process.pid)["RssAnon"]
                    self.anonymous_peak = max(self.anonymous_peak, anonymous)
            if ready:
                part = os.read(self._answers, 1 << 16)
                if not part:
                    code = self._process.wait()
                    raise WorkerFailed(f"{question} ended its process (exit status {code}); {self._last_words()}")
                self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else "it printed nothing"


def process_memory(pid: int) -> dict[str, int]:
    """Bytes by name (VmHWM, VmRSS, RssAnon, RssFile …) from ``/proc/PID/status``."""
    result = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            result[name] = int(value.split()[0]) * 1024
    return result


def physical_cores() -> int:
    """Physical cores that this process may use."""
    allowed = os.sched_getaffinity(0)
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text().strip() if path.exists() else str(cpu))
    return len(siblings)
