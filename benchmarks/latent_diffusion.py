"""Latent Diffusion at Stable-Diffusion-1.5 size with random weights: sfumato beside diffusers and ONNX Runtime.

    python benchmarks/latent_diffusion.py [--latents 32 64] [--minutes 12] [--quick]

Exports the networks through `sfumato export` (time and peak memory), times one guided UNet call in every library
and whole 20-step runs, both in turns within this run, and looks at memory, accuracy and imports. Results are written
after every part to ``benchmarks/results/<class of machine>.{json,md}``, each goal with met or missed and why. A
variant that fails is reported, and the rest goes on. README.md in this folder says how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import STEPS, Bench, Clock
from export_memory import make_folder, measure_export
from lean import measure_imports
from models import FULL, QUICK
from report import Results, default_folder
from rounds import measure_runs, measure_steps
from workers import WorkerFailed

log = logging.getLogger("benchmark")
RUNS_RESERVE = 170.0
"""Seconds kept back for whole runs at the first size while steps are measured."""
PARTS = ("export", "imports", "steps", "runs")
STEP_OF_RUN = {"run_sfumato": "sfumato", "run_fp32": "torch_fp32", "run_bf16": "torch_bf16"}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="sfumato beside diffusers and ONNX Runtime, at Stable Diffusion 1.5's size."
    )
    parser.add_argument("--latents", type=int, nargs="+", help="sides of the latents (default: 32 64; quick: 8 16)")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try the benchmark itself")
    parser.add_argument(
        "--minutes", type=float, default=12, help="time to keep to; parts that do not fit are cut or left out"
    )
    parser.add_argument("--rounds", type=int, default=7, help="most rounds of steps (default: 7)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps of a whole run (default: 20)")
    parser.add_argument(
        "--variants", nargs="+", choices=list(STEPS), help="default: all; quick: all but the compiled one"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument(
        "--work", type=Path, help="folder for models and logs, kept and used again (default: a temporary one)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    options = parser.parse_args()
    if min([options.rounds, options.steps, *(options.latents or [1])]) < 1:
        parser.error("--rounds, --steps and --latents need 1 or more")
    return options


def main() -> int:
    """Measure every part and show the page."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    clock = Clock(options.minutes)
    results = Results((options.out or default_folder(options.quick)).absolute(), quick=options.quick)
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sfumato-bench-")))
        work = work.absolute()
        work.mkdir(parents=True, exist_ok=True)
        os.environ["SFUMATO_CACHE"] = str(work / "cache")  # the user's own cache is neither used nor filled
        _measure(options, results, work, clock)
    print(results.markdown())
    log.info("wrote %s and .md", results.path)
    return 0


def _measure(options: argparse.Namespace, results: Results, work: Path, clock: Clock) -> None:
    sizes: list[int] = options.latents or list((QUICK if options.quick else FULL).latents)
    variants = options.variants or [v for v in STEPS if not (options.quick and v.endswith("compiled"))]
    log.info("making the networks")
    folder = make_folder(work, options.quick)
    bundle = _export(options, results, folder, work)
    if "imports" in options.parts:
        log.info("imports")
        try:
            results.update("imports", measure_imports(bundle))
        except (RuntimeError, OSError, ValueError) as error:
            results.update("imports", {"failed": str(error)})
    bench = Bench(folder, bundle, work, options.quick, clock, options.rounds)
    steps: dict[str, Any] = {}
    if "steps" in options.parts:
        bench.reserve = RUNS_RESERVE if "runs" in options.parts and not options.quick else 0.0

        def write_steps(size: int, part: dict[str, Any]) -> None:
            steps[str(size)] = part
            results.update("steps", steps)

        measure_steps(bench, variants, sizes, write_steps)
    bench.reserve = 0.0
    runs: dict[str, Any] = {}
    if "runs" in options.parts:
        for size in sizes:
            if runs and clock.left() < 60:
                log.info("no time is left for whole runs at %dx%d latents", size, size)
                break

            def write_runs(part: dict[str, Any], size: int = size) -> None:
                runs[str(size)] = part
                results.update("runs", runs)

            bench.rounds = min(options.rounds, 2)
            measured = steps.get(str(size), {}).get("variants", {})
            per_step = {run: measured.get(step, {}).get("fastest", 0.0) for run, step in STEP_OF_RUN.items()}
            measure_runs(bench, size, options.steps, write_runs, per_step)


def _export(options: argparse.Namespace, results: Results, folder: Path, work: Path) -> Path | None:
    """The bundle of `folder`, made anew unless ``--parts`` leaves the export out and there is one."""
    bundle = work / "bundle"
    if "export" not in options.parts and (bundle / "manifest.json").is_file():
        return bundle
    log.info("exporting")
    try:
        results.update("export", measure_export(folder, bundle, work / "export.log"))
    except WorkerFailed as failure:
        log.warning("export: %s", failure)
        results.update("export", {"failed": str(failure)})
        return None
    return bundle


if __name__ == "__main__":
    sys.exit(main())
