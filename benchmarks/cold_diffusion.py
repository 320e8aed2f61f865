"""Cold Diffusion: whole restorations through a bundle beside the authors' way in torch, same weights.

    python benchmarks/cold_diffusion.py [--side 128] [--steps 200] [--minutes 12] [--quick]

The paper's ConvNeXt network (56.6 million weights, drawn at random) and its deblurring: a picture of 128 pixels is
blurred 200 times and restored by algorithm 2. Both sides take turns in this run, degrade and restore, and are timed end
to end; how much of it the network takes is told for both, since the authors' way degrades T² times. Results go
to ``benchmarks/results/<class of machine>.{json,md}``; goals: four times as fast, degradations at most a tenth of the
engine's time.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench, Clock
from cold_runs import BLUR, CHECKPOINT
from report import Results, default_folder
from rounds import turns
from workers import Worker, WorkerFailed

log = logging.getLogger("benchmark")
VARIANTS = ("cold_sfumato", "cold_torch")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Cold Diffusion through a bundle beside the authors' way in torch.")
    parser.add_argument("--side", type=int, help="side of the picture (default: 128; quick: 32)")
    parser.add_argument("--steps", type=int, help="T (default: 200; quick: 6)")
    parser.add_argument("--dim", type=int, help="width of the network (default: 64, the paper's; quick: 8)")
    parser.add_argument("--quick", action="store_true", help="a tiny network, to try the benchmark itself")
    parser.add_argument("--minutes", type=float, default=12, help="time to keep to")
    parser.add_argument("--rounds", type=int, default=3, help="most rounds (default: 3)")
    parser.add_argument("--work", type=Path, help="folder for the model and logs (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    options = parser.parse_args()
    options.side = options.side or (32 if options.quick else 128)
    options.steps = options.steps or (6 if options.quick else 200)
    options.dim = options.dim or (8 if options.quick else 64)
    return options


def main() -> int:
    """Make the model, measure, show the page."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    clock = Clock(options.minutes)
    results = Results((options.out or default_folder(options.quick)).absolute(), quick=options.quick)
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sfumato-bench-")))
        work = work.absolute()
        work.mkdir(parents=True, exist_ok=True)
        os.environ["SFUMATO_CACHE"] = str(work / "cache")
        mults = [1, 2] if options.quick else [1, 2, 4, 8]
        part: dict[str, Any] = {"side": options.side, "steps": options.steps, "variants": {}}
        part["weights"] = _make(options, work, mults)
        bench = Bench(work, work / "bundle", work, options.quick, clock, options.rounds)
        _measure(bench, part, lambda: results.update("cold", part))
    print(results.markdown())
    log.info("wrote %s and .md", results.path)
    return 0


def _make(options: argparse.Namespace, work: Path, mults: list[int]) -> float:
    """Checkpoint and bundle; millions of weights."""
    log.info("making the network")
    with Worker("cold_make", work / "make.log", 1) as maker:
        weights = float(maker.ask("make", folder=str(work), dim=options.dim, mults=mults, steps=options.steps))
    words = [f"steps={options.steps}", "routine=Exponential", *(f"{name}={value}" for name, value in BLUR.items())]
    command = [sys.executable, "-m", "sfumato", "export", "cold-diffusion", "--checkpoint", str(work / CHECKPOINT)]
    command += ["--out", str(work / "bundle"), "--degradation", "blur", "--size", str(options.side)]
    log.info("exporting")
    subprocess.run([*command, *(word for pair in words for word in ("-p", pair))], check=True, stdout=sys.stderr)
    return weights


def _measure(bench: Bench, part: dict[str, Any], write: Any) -> None:
    with contextlib.ExitStack() as stack:
        ready: dict[str, Worker] = {}
        for kind in VARIANTS:
            log.info("loading %s", kind)
            try:
                worker, answer = bench.open(kind, stack)
                warm = worker.ask("run", limit=240, watch=True, latents=part["side"], steps=1)["seconds"]
            except WorkerFailed as failure:
                log.warning("%s: %s", kind, failure)
                part["variants"][kind] = {"failed": str(failure)}
                continue
            ready[kind] = worker
            facts = {"precision": answer["precision"], "load": answer["seconds"], "warm_up": warm}
            part["variants"][kind] = {**facts, "steps": part["steps"]}
        counts = dict.fromkeys(ready, part["steps"])
        turns(bench, part, ready, VARIANTS[0], "run", write, counts=counts, size=part["side"])
        pictures = {}
        for kind, worker in ready.items():
            part["variants"][kind] |= worker.memory()
            worker.ask("output", path=str(bench.work / f"{kind}.npy"))
            pictures[kind] = np.load(bench.work / f"{kind}.npy").astype(np.float64)
        if len(pictures) == len(VARIANTS):
            ours, theirs = (pictures[kind] for kind in VARIANTS)
            part["difference"] = float(np.sqrt(np.mean((ours - theirs) ** 2)))
        write()


if __name__ == "__main__":
    sys.exit(main())
