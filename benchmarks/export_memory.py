"""Time and peak memory of exporting a Stable-Diffusion-1.5-size diffusers folder with random float16 weights.

    python benchmarks/export_memory.py [--quick] [--work FOLDER] [--out FOLDER]

Runs ``sfumato export latent-diffusion`` in a process of its own and adds its numbers to the results of this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import Results, default_folder
from workers import POLL, Worker, WorkerFailed, physical_cores, process_memory

__all__ = ["main", "make_folder", "measure_export"]


def make_folder(work: Path, quick: bool) -> Path:
    """The diffusers folder ``work/diffusers``; made if it is not there."""
    folder = work / "diffusers"
    if not (folder / "model_index.json").is_file():
        with Worker("make", work / "make.log", physical_cores()) as worker:
            worker.ask("folder", limit=300, out=str(folder), quick=quick)
    return folder


def measure_export(folder: Path, out: Path, log: Path, limit: float = 300.0) -> dict[str, Any]:
    """Export `folder` as the bundle `out`.

    Returns:
        ``seconds``, and bytes: ``peak`` (VmHWM, mapped files too), ``anonymous_peak``, ``checkpoint`` and ``bundle``.

    Raises:
        WorkerFailed: It failed or took longer than `limit` seconds.
    """
    command = [
        sys.executable,
        "-m",
        "sfumato",
        "export",
        "latent-diffusion",
        "--checkpoint",
        str(folder),
        "--out",
        str(out),
    ]
    state = {"VmHWM": 0, "RssAnon": 0}
    begin = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError):
                    now = process_memory(process.pid)
                    state = {name: max(peak, now.get(name, 0)) for name, peak in state.items()}
                if time.perf_counter() - begin > limit:
                    raise WorkerFailed(f"export took more than {limit:.0f} s and was stopped")
                time.sleep(POLL)
        finally:
            process.kill()
            process.wait()
    seconds = time.perf_counter() - begin
    if process.returncode != 0:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise WorkerFailed(f"sfumato export: {' '.join(lines[-3:])[-300:] or f'exit status {process.returncode}'}")
    return {
        "seconds": seconds,
        "peak": state["VmHWM"],
        "anonymous_peak": state["RssAnon"],
        "checkpoint": _size(folder),
        "bundle": _size(out),
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> int:
    """Measure, write, show."""
    parser = argparse.ArgumentParser(description="Time and peak memory of an SD-1.5-size export.")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try the benchmark itself")
    parser.add_argument("--work", type=Path, help="folder for the models, kept (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    options = parser.parse_args()
    results = Results(options.out or default_folder(options.quick), quick=options.quick)
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sfumato-bench-")))
        work = work.absolute()
        work.mkdir(parents=True, exist_ok=True)
        try:
            folder = make_folder(work, options.quick)
            results.update("export", measure_export(folder, work / "bundle", work / "export.log"))
        except WorkerFailed as failure:
            results.update("export", {"failed": str(failure)})
    print(results.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
