"""pix2pix-zero at Stable-Diffusion-1.5 size with random weights: sfumato beside the official data flow in torch.

    python benchmarks/pix2pix_zero.py [--latents 32 64] [--steps 50] [--rounds 3] [--minutes 12] [--quick] [--work F]

An inversion step, a guidance step (both passes) and a whole edit, latent to latents, each variant in turns with torch
in float32; peak memory (VmHWM) of a fresh process that makes one edit. torch makes the reference of a whole edit, whose
maps of all steps fill its memory, but only some of the slow steps, whose time is multiplied up: the page says so. Where
two processes do not fit side by side, torch in float32 is timed alone, before the others, and the maps of most steps
are counted.
Results go to ``benchmarks/results/<class of machine>.{json,md}``; a size that is not asked for keeps its own. Goals: a
guidance step and a whole edit 4 times as fast, at most half the memory.
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

from bench import Clock, memory_available
from export_memory import make_folder
from models import FULL, QUICK
from report import Results, default_folder
from workers import Worker, WorkerFailed, physical_cores

log = logging.getLogger("benchmark")

REFERENCE = "p2p_fp32"
OTHERS = ("p2p_sfumato", "p2p_bf16")
PARTS = ("inversion", "guidance")
SETTLE = 0.1
LIMIT = 900.0
EDIT_LIMIT = 3600.0


class Edits:
    """The variants at one size: what is asked of them, and what they answered.

    Arguments:
        models: Arguments of every variant's ``load``.
        work: For logs.
        clock: Time left.
        latents: Side of the latents.
        steps: Of inversion and of sampling.
        rounds: Most rounds.
        write: Called with what there is, often.
    """

    def __init__(
        self,
        models: dict[str, str],
        work: Path,
        clock: Clock,
        latents: int,
        steps: int,
        rounds: int,
        write: Callable[[dict[str, Any]], None],
    ) -> None:
        self._models, self._work, self._clock, self._write = models, work, clock, write
        self._size = {"latents": latents, "steps": steps}
        self._rounds = rounds
        self._count = min(2, steps - 2)
        timed = {"inversion": min(10, steps - 2), "reference": steps, "guided": min(4, steps)}
        self.part: dict[str, Any] = {"steps": steps, "timed": timed, "turns": True, "variants": {}}

    def measure(self) -> None:
        """Steps, then whole edits."""
        with contextlib.ExitStack() as stack:
            reference: Worker | None = None
            try:
                reference = self._open(REFERENCE, stack)
                if reference.memory()["peak"] / 1e9 > 0.5 * memory_available():
                    self._alone(reference)
                    reference = None
            except WorkerFailed as failure:
                self._failed(REFERENCE, failure)
                reference = None
            for kind in OTHERS:
                with contextlib.ExitStack() as one:
                    try:
                        self._turns(kind, self._open(kind, one), reference)
                    except WorkerFailed as failure:
                        self._failed(kind, failure)
                self._write(self.part)
        for kind in (*OTHERS, REFERENCE):
            if "failed" not in self.part["variants"][kind]:
                self._edit(kind)
                self._write(self.part)

    def _open(self, kind: str, stack: contextlib.ExitStack) -> Worker:
        log.info("loading %s", kind)
        worker = stack.enter_context(Worker(kind, self._work / f"{kind}.log", physical_cores()))
        self.part["variants"][kind] = dict(worker.ask("load", limit=LIMIT, **self._models))
        for part in PARTS:  # compiles, and fills caches
            worker.ask(part, limit=LIMIT, count=1, **self._size)
        return worker

    def _alone(self, reference: Worker) -> None:
        """Time the reference before the others are opened, and have it keep the maps of some steps only."""
        self.part["turns"] = False
        self.part["timed"]["reference"] = self.part["timed"]["inversion"]
        self._turns(REFERENCE, reference, None)
        reference.close()

    def _turns(self, kind: str, worker: Worker, reference: Worker | None) -> None:
        log.info("steps of %s", kind)
        pair = {kind: worker} if reference is None else {REFERENCE: reference, kind: worker}
        times: dict[str, dict[str, list[float]]] = {name: {part: [] for part in PARTS} for name in pair}
        for index in range(self._rounds):
            if index and self._clock.left() < 0:
                break
            for name, asked in pair.items():
                for part in PARTS:
                    time.sleep(SETTLE)
                    times[name][part].append(asked.ask(part, limit=LIMIT, count=self._count, **self._size))
        for name, parts in times.items():
            for part, values in parts.items():
                own = {"fastest": min(values), "median": median(values), "n": len(values)}
                alone = self.part["variants"][REFERENCE].get(part, {}).get("fastest")
                base = min(times[REFERENCE][part]) if REFERENCE in times else alone
                if base:
                    own["ratio"] = base / own["fastest"]
                if name == kind or part not in self.part["variants"][name]:
                    self.part["variants"][name][part] = own

    def _edit(self, kind: str) -> None:
        """One edit in a process of its own, after one step that compiles; for its memory too."""
        log.info("an edit of %s", kind)
        result, theirs = self.part["variants"][kind], self.part["variants"]
        with Worker(kind, self._work / f"{kind}-edit.log", physical_cores()) as worker:
            try:
                worker.ask("load", limit=LIMIT, **self._models)
                for part in PARTS:
                    worker.ask(part, limit=LIMIT, count=1, **self._size)
                result["edit"] = worker.ask("edit", limit=EDIT_LIMIT, watch=True, **self.part["timed"], **self._size)
                result |= worker.memory()
                result["peak"] += result["edit"]["unheld"]
            except WorkerFailed as failure:
                result["edit_failed"] = str(failure)
        base = theirs[REFERENCE]
        for own in theirs.values():
            if "edit" in own and "edit" in base:
                own["edit"]["ratio"] = base["edit"]["seconds"] / own["edit"]["seconds"]
                own["memory"] = own["peak"] / base["peak"]

    def _failed(self, kind: str, failure: WorkerFailed) -> None:
        log.warning("%s: %s", kind, failure)
        self.part["variants"][kind] = {"failed": str(failure)}


def main() -> int:
    """Make, export, measure, write, show."""
    parser = argparse.ArgumentParser(description="pix2pix-zero beside the official data flow.")
    parser.add_argument("--latents", type=int, nargs="+", help="sides of the latents (default: 32; quick: 16)")
    parser.add_argument("--steps", type=int, default=0, help="of inversion and sampling (default: 50; quick: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="most rounds of steps (default: 3)")
    parser.add_argument("--minutes", type=float, default=12, help="time after which no further round begins")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try the benchmark itself")
    parser.add_argument("--work", type=Path, help="folder for models and logs, kept (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    clock, steps = Clock(options.minutes), options.steps or (4 if options.quick else 50)
    results = Results((options.out or default_folder(options.quick)).absolute(), quick=options.quick)
    sizes = dict[str, Any](results.data.get("pix2pix", {}))
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sfumato-bench-")))
        work = work.absolute()
        work.mkdir(parents=True, exist_ok=True)
        os.environ["SFUMATO_CACHE"] = str(work / "cache")
        folder, bundle = make_folder(work, options.quick), work / "bundle-p2p"
        if not (bundle / "manifest.json").is_file():
            with Worker("p2p_make", work / "export-p2p.log", physical_cores()) as worker:
                log.info("exporting %s", folder)
                worker.ask("bundle", limit=7200, folder=str(folder), out=str(bundle))
        for latents in options.latents or (QUICK.latents[-1:] if options.quick else FULL.latents[:1]):

            def write(part: dict[str, Any], key: str = str(latents)) -> None:
                sizes[key] = part
                results.update("pix2pix", sizes)

            models = {"folder": str(folder), "bundle": str(bundle)}
            Edits(models, work, clock, latents, steps, options.rounds, write).measure()
    print(results.markdown())
    log.info("wrote %s and .md", results.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
