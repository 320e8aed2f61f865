"""Rounds: variants in turns within one run, so that all of them meet the same machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

import numpy as np
from bench import ANCHOR, STEPS, Bench, groups, memory_available
from numpy.typing import NDArray
from workers import Worker, WorkerFailed

__all__ = ["measure_runs", "measure_steps", "turns"]

log = logging.getLogger(__name__)

RUNS = ("run_sfumato", "run_bf16", "run_fp32")
SETTLE = 0.1
"""Seconds between turns: thread pools spin for some milliseconds after their last work, then sleep."""


def measure_steps(
    bench: Bench, variants: Sequence[str], sizes: Sequence[int], write: Callable[[int, dict[str, Any]], None]
) -> None:
    """One UNet call in every variant at every size; `write` is called with what there is after each round and group."""
    parts: dict[int, dict[str, Any]] = {size: {"rounds": 0, "variants": {}} for size in sizes}
    need = dict.fromkeys(STEPS, 0.5) if bench.quick else STEPS
    references: dict[int, NDArray[Any]] = {}
    outputs: dict[tuple[int, str], NDArray[Any]] = {}
    for group in groups([ANCHOR, *(v for v in variants if v != ANCHOR)], need, memory_available()):
        with ExitStack() as stack:
            held: dict[str, Worker] = {}
            facts: dict[str, dict[str, Any]] = {}
            for kind in group:
                log.info("loading %s", kind)
                try:
                    worker, answer = bench.open(kind, stack, quick=bench.quick)
                    held[kind], facts[kind] = worker, {"precision": answer["precision"], "load": answer["seconds"]}
                except WorkerFailed as failure:
                    for part in parts.values():
                        _failed(part, kind, failure)
            for size in sizes:
                part = parts[size]
                ready = {}
                for kind, worker in list(held.items()):
                    log.info("%s at %dx%d latents", kind, size, size)
                    try:
                        limit = _patience(bench, kind)
                        warm = worker.ask("prepare", limit=limit, latents=size)
                        path = bench.work / f"{kind}-{size}.npy"
                        worker.ask("output", limit=120, path=str(path))
                    except WorkerFailed as failure:
                        _failed(part, kind, failure)
                        worker.close()
                        del held[kind]
                        for later in sizes[sizes.index(size) + 1 :]:
                            _failed(parts[later], kind, WorkerFailed(f"it was stopped at {size}x{size} latents"))
                        continue
                    outputs[size, kind] = np.load(path)
                    if kind == "torch_fp32":
                        references[size] = outputs[size, kind]
                    ready[kind] = worker
                    part["variants"].setdefault(kind, {**facts[kind], "warm_up": warm})
                turns(bench, part, ready, ANCHOR, "step", lambda: write(size, part))  # noqa: B023 (called at once)
                for kind, worker in ready.items():
                    if "failed" not in part["variants"][kind]:
                        part["variants"][kind]["memory"] = worker.memory()["now"]
                for kind in part["variants"]:
                    if size in references and (size, kind) in outputs:
                        part["variants"][kind]["error"] = _error(outputs[size, kind], references[size])
                write(size, part)


def measure_runs(
    bench: Bench, size: int, steps: int, write: Callable[[dict[str, Any]], None], per_step: Mapping[str, float]
) -> None:
    """Whole runs at one size, every variant in a fresh process.

    Arguments:
        bench: The benchmark.
        size: Side of the latents.
        steps: Sampling steps.
        write: Called with what there is, often.
        per_step: Seconds of a step by variant as measured before. A variant for whose run no time is left makes
            fewer steps: its memory still counts, its time does not.
    """
    part: dict[str, Any] = {"steps": steps, "variants": {}}
    with ExitStack() as stack:
        ready: dict[str, Worker] = {}
        counts: dict[str, int] = {}
        for kind in RUNS:
            log.info("%s at %dx%d latents", kind, size, size)
            try:
                worker, answer = bench.open(kind, stack)
                begin = time.perf_counter()
                worker.ask("run", limit=240, watch=True, latents=size, steps=1)
            except WorkerFailed as failure:
                _failed(part, kind, failure)
                continue
            ready[kind] = worker
            expected = steps * per_step.get(kind, 0.0)
            counts[kind] = steps if expected <= bench.left() / 2 else min(steps, 3)
            part["variants"][kind] = {
                "load": answer["seconds"],
                "warm_up": time.perf_counter() - begin,
                "steps": counts[kind],
            }

        def settle() -> None:
            for kind, worker in ready.items():
                if "failed" not in part["variants"][kind]:
                    part["variants"][kind] |= worker.memory()
            write(part)

        turns(bench, part, ready, "run_sfumato", "run", settle, counts=counts, size=size)
        settle()


def turns(
    bench: Bench,
    part: dict[str, Any],
    ready: dict[str, Worker],
    anchor: str,
    question: str,
    write: Callable[[], None],
    *,
    counts: Mapping[str, int] | None = None,
    size: int = 0,
) -> None:
    """Ask every worker in turns until there are enough rounds or no time is left; fills in times and ratios."""
    times: dict[str, list[float]] = {kind: [] for kind in ready}
    idle = busy = longest = 0.0
    for index in range(bench.rounds):
        if index and bench.left() < longest:
            log.info("stopped after %d rounds, no time is left", index)
            break
        began = time.perf_counter()
        for kind, worker in list(ready.items()):
            time.sleep(SETTLE)
            others = [other for other in ready.values() if other is not worker]
            before, start = sum(other.cpu_seconds() for other in others), time.perf_counter()
            arguments = {} if counts is None else {"latents": size, "steps": counts[kind]}
            try:
                answer = worker.ask(question, limit=600, watch=counts is not None, **arguments)
            except WorkerFailed as failure:
                _failed(part, kind, failure)
                worker.close()
                del ready[kind], times[kind]
                continue
            idle += sum(other.cpu_seconds() for other in others) - before
            busy += time.perf_counter() - start
            times[kind].append(answer if isinstance(answer, float) else answer["seconds"])
            if isinstance(answer, dict) and "network" in answer and times[kind][-1] == min(times[kind]):
                part["variants"][kind]["network"] = answer["network"]
            if isinstance(answer, dict) and "library" in answer and times[kind][-1] == min(times[kind]):
                part["variants"][kind] |= {
                    "outside_library": 1 - answer["library"] / answer["seconds"],
                    "outside_engines": 1 - answer["engines"] / answer["seconds"],
                }
        longest = max(longest, time.perf_counter() - began)
        part["rounds"] = index + 1
        part["idle"] = idle / (busy * bench.threads) if busy else 0.0
        _summarise(part, times, anchor)
        write()


def _summarise(part: dict[str, Any], times: Mapping[str, list[float]], anchor: str) -> None:
    ours = times.get(anchor)
    for kind, values in times.items():
        result = part["variants"][kind]
        if not values or (kind == anchor and result.get("n", 0) >= len(values)):
            continue  # the anchor is shown as in its first group
        result |= {"fastest": min(values), "median": median(values), "n": len(values)}
        comparable = result.get("steps") == part["variants"].get(anchor, {}).get("steps")
        if ours and comparable:
            result["ratio"] = min(values) / min(ours)
            result["ratio_of_medians"] = median(values) / median(ours)


def _failed(part: dict[str, Any], kind: str, failure: WorkerFailed) -> None:
    log.warning("%s: %s", kind, failure)
    if "fastest" not in part["variants"].get(kind, {}):
        part["variants"][kind] = {"failed": str(failure)}


def _patience(bench: Bench, kind: str) -> float:
    if not kind.endswith("compiled"):
        return 240.0
    if bench.left() < bench.compile_limit / 2:
        raise WorkerFailed("no time was left to compile; give --minutes more")
    return min(bench.compile_limit, bench.left())


def _error(output: NDArray[Any], reference: NDArray[Any]) -> float:
    wide = reference.astype(np.float64)
    return float(np.linalg.norm(output - wide) / np.linalg.norm(wide))
