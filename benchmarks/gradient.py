"""Gradients: one engine (joint) beside two (split), with and without recomputing, beside torch's autograd.

    python benchmarks/gradient.py [--quick] [--cases sd pixel] [--rounds 5] [--work FOLDER] [--out FOLDER]

Time and peak memory (VmHWM of a fresh process that holds this variant alone) of one gradient, the error of each against
torch in float32. Times are taken in turns within one run, and only their ratios are claimed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import re
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from gradient_parts import CASES
from report import default_folder, machine
from workers import Worker, WorkerFailed, physical_cores

log = logging.getLogger(__name__)

ENGINES = {
    "joint": ("joint", "openvino", None),
    "recomputed": ("recomputed", "openvino", None),
    "split": ("split", "openvino", None),
    "joint fp32": ("joint", "openvino", "fp32"),
    "split fp32": ("split", "openvino", "fp32"),
    "joint onnxruntime": ("joint", "onnxruntime", None),
}
TORCH = {"torch fp32": False, "torch bf16": True}
REFERENCE = "torch fp32"
SETTLE = 0.1


def measure(case: str, bundle: Path, work: Path, quick: bool, rounds: int) -> dict[str, Any]:
    """Every variant of a case: ``load``, ``fastest``, ``median``, ``ratio`` to torch fp32, ``peak``, ``error``."""
    result: dict[str, Any] = {}
    outputs: dict[str, np.ndarray[Any, Any]] = {}
    times: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        ready: dict[str, Worker] = {}
        for name in (REFERENCE, *(n for n in (*TORCH, *ENGINES) if n != REFERENCE)):
            log.info("%s: %s", case, name)
            kind = "gradient_torch" if name in TORCH else "gradient_engine"
            worker = stack.enter_context(Worker(kind, work / f"{case}-{name.replace(' ', '-')}.log", physical_cores()))
            try:
                begin = time.perf_counter()
                precision = _load(worker, name, case, bundle, quick)
                worker.ask("prepare", limit=900)
                result[name] = {"precision": precision, "load": time.perf_counter() - begin, **worker.memory()}
                path = work / f"{case}-{name.replace(' ', '-')}.npy"
                worker.ask("output", limit=300, path=str(path))
            except WorkerFailed as failure:
                result[name] = {"failed": str(failure)}
                worker.close()
                continue
            ready[name], outputs[name], times[name] = worker, np.load(path).astype(np.float64), []
        for _ in range(rounds):
            for name, worker in ready.items():
                time.sleep(SETTLE)
                times[name].append(worker.ask("step", limit=300))
    for name, values in times.items():
        own, exact = outputs[name], outputs.get(REFERENCE)
        result[name] |= {"fastest": min(values), "median": median(values), "n": len(values)}
        if exact is not None:
            norms = float(np.linalg.norm(own)), float(np.linalg.norm(exact))
            result[name] |= {
                "ratio": min(times[REFERENCE]) / min(values),
                "error": float(np.linalg.norm(own - exact)) / norms[1],
                "cosine": float(own.ravel() @ exact.ravel()) / (norms[0] * norms[1]),
            }
    return result


def _load(worker: Worker, name: str, case: str, bundle: Path, quick: bool) -> Any:
    if name in TORCH:
        return worker.ask("load", case=case, quick=quick, threads=physical_cores(), bf16=TORCH[name])
    kind, backend, precision = ENGINES[name]
    more = {"kind": kind, "backend": backend, "precision": precision}
    return worker.ask("load", bundle=str(bundle), case=case, quick=quick, **more)


def table(facts: dict[str, Any], cases: dict[str, Any]) -> str:
    """The page."""
    lines = [f"# Gradients on {facts['class']}", "", f"{facts['processor']}, {facts['memory_gb']} GB."]
    for case, rows in cases.items():
        lines += [
            "",
            f"## {case}",
            "",
            "| variant | computed in | ms | times as fast as torch fp32 | peak GB | error | cosine |",
        ]
        lines.append("| --- | --- | --- | --- | --- | --- | --- |")
        for name, row in rows.items():
            if "failed" in row:
                lines.append(f"| {name} | {row['failed']} | | | | | |")
                continue
            lines.append(
                f"| {name} | {row['precision']} | {1e3 * row['fastest']:.0f} | {row.get('ratio', 0):.2f} "
                f"| {row['peak'] / 1e9:.2f} | {row.get('error', 0):.2e} | {row.get('cosine', 0):.5f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Export, measure, write, show."""
    parser = argparse.ArgumentParser(description="Time and memory of gradients.")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try the benchmark itself")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="folder for bundles and logs, kept (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    facts, cases = machine(), dict[str, Any]()
    stem = re.sub(r"[^a-z0-9]+", "-", facts["class"].lower()).strip("-") + "-gradients"
    path = (options.out or default_folder(options.quick)) / f"{stem}.json"
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sfumato-bench-")))
        work = work.absolute()
        work.mkdir(parents=True, exist_ok=True)
        for case in options.cases:
            bundle = work / case
            if not (bundle / "manifest.json").is_file():
                with Worker("gradient_export", work / f"{case}-export.log", physical_cores()) as worker:
                    log.info("%s: exporting", case)
                    worker.ask("bundle", limit=7200, out=str(bundle), case=case, quick=options.quick)
            cases[case] = measure(case, bundle, work, options.quick, options.rounds)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"machine": facts, "quick": options.quick, "cases": cases}, indent=1) + "\n")
            path.with_suffix(".md").write_text(table(facts, cases))
    print(table(facts, cases))
    return 0


if __name__ == "__main__":
    sys.exit(main())
