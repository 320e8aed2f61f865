"""Gradients: one engine (joint) beside two (split), with and without recomputing, beside torch's autograd.

    python benchmarks/gradient.py [--cases sd pixel] [--rounds 3] [--minutes 12] [--quick] [--work FOLDER]

Time and peak memory (VmHWM of a fresh process that holds this variant alone) of one gradient, the error of each against
torch in float32. Each variant is timed in turns with autograd in float32, where both fit into memory, and only the
ratios are claimed. Results go to ``benchmarks/results/<class of machine>.{json,md}``; a case that was not measured
keeps what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench import Clock, memory_available
from gradient_parts import CASES
from numpy.typing import NDArray
from report import Results, default_folder
from workers import Worker, WorkerFailed, physical_cores

log = logging.getLogger("benchmark")

ENGINES = {
    "joint": ("joint", "openvino", None),
    "recomputed": ("recomputed", "openvino", None),
    "split": ("split", "openvino", None),
    "joint_fp32": ("joint", "openvino", "fp32"),
    "joint_onnxruntime": ("joint", "onnxruntime", None),
}
"""Graph, library and precision; None is the library's own."""
TORCH = {"torch_fp32": False, "torch_bf16": True}
REFERENCE = "torch_fp32"
SETTLE = 0.1
LIMIT = 900.0


class Gradients:
    """The variants of a case, one at a time beside autograd in float32.

    Arguments:
        case: Which.
        bundle: Its bundle.
        work: For logs and outputs.
        clock: Time left.
        quick: Tiny networks.
        rounds: Most rounds.
        facts: What is known of the case, for the page.
        write: Called with what there is, often.
    """

    def __init__(
        self,
        case: str,
        bundle: Path,
        work: Path,
        clock: Clock,
        quick: bool,
        rounds: int,
        facts: dict[str, Any],
        write: Callable[[dict[str, Any]], None],
    ) -> None:
        self._case = {"case": case, "quick": quick}
        self._bundle, self._work, self._clock, self._rounds, self._write = bundle, work, clock, rounds, write
        self.part: dict[str, Any] = {**facts, "variants": {}}

    def measure(self) -> None:
        """Every variant: ``load``, ``warm_up``, ``fastest``, ``median``, ``ratio``, ``peak``, ``error``, ``cosine``."""
        with contextlib.ExitStack() as stack:
            reference, exact = self._open(REFERENCE, stack)
            # What is predicted is an upper bound; three quarters of it were needed at most.
            self.part["turns"] = 0.75 * self.part["predicted"] / 1e9 < memory_available()
            if reference is not None and not self.part["turns"]:
                self._turns(REFERENCE, reference, None)
                reference.close()
                reference = None
            for name in (*ENGINES, *(n for n in TORCH if n != REFERENCE)):
                with contextlib.ExitStack() as one:
                    worker, own = self._open(name, one)
                    if worker is not None:
                        self._turns(name, worker, reference)
                        if own is not None and exact is not None:
                            self.part["variants"][name] |= _compare(own, exact)
                self._write(self.part)

    def _open(self, name: str, stack: contextlib.ExitStack) -> tuple[Worker | None, NDArray[Any] | None]:
        log.info("%s: %s", self._case["case"], name)
        stem = f"{self._case['case']}-{name}"
        kind = "gradient_torch" if name in TORCH else "gradient_engine"
        worker = stack.enter_context(Worker(kind, self._work / f"{stem}.log", physical_cores()))
        try:
            begin = time.perf_counter()
            precision = worker.ask("load", limit=LIMIT, **self._arguments(name))
            load = time.perf_counter() - begin
            warm = worker.ask("prepare", limit=LIMIT)
            self.part["variants"][name] = {"precision": precision, "load": load, "warm_up": warm, **worker.memory()}
            path = self._work / f"{stem}.npy"
            worker.ask("output", limit=LIMIT, path=str(path))
        except WorkerFailed as failure:
            log.warning("%s: %s", name, failure)
            self.part["variants"][name] = {"failed": str(failure)}
            return None, None
        return worker, np.load(path).astype(np.float64)

    def _arguments(self, name: str) -> dict[str, Any]:
        if name in TORCH:
            return {**self._case, "threads": physical_cores(), "bf16": TORCH[name]}
        kind, backend, precision = ENGINES[name]
        return {**self._case, "bundle": str(self._bundle), "kind": kind, "backend": backend, "precision": precision}

    def _turns(self, name: str, worker: Worker, reference: Worker | None) -> None:
        times: dict[str, list[float]] = {name: []} if reference is None else {REFERENCE: [], name: []}
        for index in range(self._rounds):
            if index and self._clock.left() < 0:
                break
            for key, asked in ((REFERENCE, reference), (name, worker)):
                if asked is not None:
                    time.sleep(SETTLE)
                    times[key].append(asked.ask("step", limit=LIMIT))
        for key, values in times.items():
            own = {"fastest": min(values), "median": median(values), "n": len(values)}
            base = min(times.get(REFERENCE, [self.part["variants"][REFERENCE].get("fastest", 0.0)]))
            if base:
                own["ratio"] = base / own["fastest"]
            if key == name or "fastest" not in self.part["variants"][key]:
                self.part["variants"][key] |= own


def _compare(own: NDArray[Any], exact: NDArray[Any]) -> dict[str, float]:
    norms = float(np.linalg.norm(own)), float(np.linalg.norm(exact))
    product = float(own.ravel() @ exact.ravel())
    return {"error": float(np.linalg.norm(own - exact)) / norms[1], "cosine": product / (norms[0] * norms[1])}


def main() -> int:
    """Export, measure, write, show."""
    parser = argparse.ArgumentParser(description="Time and memory of gradients.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3, help="most rounds (default: 3)")
    parser.add_argument("--minutes", type=float, default=12, help="time after which no further round begins")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try the benchmark itself")
    parser.add_argument("--work", type=Path, help="folder for bundles and logs, kept (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    clock = Clock(options.minutes)
    results = Results((options.out or default_folder(options.quick)).absolute(), quick=options.quick)
    cases = dict(results.data.get("gradient", {}))
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sfumato-bench-")))
        work = work.absolute()
        work.mkdir(parents=True, exist_ok=True)
        os.environ["SFUMATO_CACHE"] = str(work / "cache")
        for case in options.cases:
            bundle = work / f"bundle-{case}"
            with Worker("gradient_export", work / f"{case}-export.log", physical_cores()) as worker:
                facts = worker.ask("facts", limit=LIMIT, case=case, quick=options.quick)
                if not (bundle / "manifest.json").is_file():
                    log.info("%s: exporting", case)
                    worker.ask("bundle", limit=7200, out=str(bundle), case=case, quick=options.quick)

            def write(part: dict[str, Any], key: str = case) -> None:
                cases[key] = part
                results.update("gradient", cases)

            Gradients(case, bundle, work, clock, options.quick, options.rounds, facts, write).measure()
    print(results.markdown())
    log.info("wrote %s and .md", results.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
