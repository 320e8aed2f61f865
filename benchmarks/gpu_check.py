"""The check of a machine with an NVIDIA GPU, in one command: plans, parity, latency, and the tests that need one.

    python benchmarks/gpu_check.py [--bundles bundles/emoji-ldm ...] [--backends onnxruntime_cuda tensorrt]
    python benchmarks/gpu_check.py --dry-run --stand-in openvino    # without a GPU: every step, on CPU engines

Missing plans are built for the GPU at hand. Results go to ``benchmarks/results/gpu.{json,md}``, of a dry run to
``out/benchmarks``, written after every part. Exit status: 0 all passed, 1 something failed, 2 there is no GPU to check.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export_memory import make_folder, measure_export
from gpu_engines import GPU_BACKENDS, build_missing, missing, variants
from gpu_latency import bundle_latency, unet_latency
from gpu_parity import check_parity, compare_with_polygraphy, has_polygraphy
from gpu_report import GpuResults
from workers import WorkerFailed

from sfumato.engines.backends import available_backends
from sfumato.engines.bundle import Bundle
from sfumato.engines.doctor import Environment, environment
from sfumato.engines.doctor_rules import diagnose

log = logging.getLogger("gpu-check")
ROOT = Path(__file__).resolve().parents[1]
ALL_PARTS = ("plans", "parity", "polygraphy", "latency", "unet", "tests")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Check this machine's NVIDIA GPU: parity, latency, tests.")
    parser.add_argument("--bundles", type=Path, nargs="+", help="default: those of the repository")
    parser.add_argument("--backends", nargs="+", choices=GPU_BACKENDS, help="default: all that work here")
    parser.add_argument("--parts", nargs="+", choices=ALL_PARTS, default=list(ALL_PARTS), help="default: all")
    parser.add_argument("--rounds", type=int, default=20, help="calls of each variant (default: 20)")
    parser.add_argument("--latents", type=int, help="side of the UNet's latents (default: 64; dry run: 8)")
    parser.add_argument("--work", type=Path, help="folder for the UNet's bundle, kept (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="every step on CPU engines; says what would run")
    parser.add_argument("--stand-in", default="openvino", help="the engine of a dry run (default: openvino)")
    options = parser.parse_args(given)
    if options.rounds < 1:
        parser.error("--rounds needs 1 or more")
    return options


def main(given: list[str] | None = None) -> int:
    """Do every part and show the page."""
    options = arguments(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    env = environment()
    lacking = missing(env)
    if lacking and not options.dry_run:
        print(f"gpu-check cannot run here: {lacking}")
        return 2
    show_doctor(env, lacking)
    folder = options.out or (ROOT / "out" / "benchmarks" if options.dry_run else ROOT / "benchmarks" / "results")
    results = GpuResults(folder / ("gpu-dry-run.json" if options.dry_run else "gpu.json"), env, dry=options.dry_run)
    state = available_backends()
    working = options.backends or [name for name in GPU_BACKENDS if state[name] is None]
    bundles = [Bundle.open(path, verify=False) for path in options.bundles or _bundles()]
    if options.dry_run:
        show_plan(bundles, options.backends or GPU_BACKENDS)
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sfumato-gpu-")))
        for part in options.parts:
            log.info("part: %s", part)
            results.update(part, list(_part(part, options, bundles, working, env, work)))
    print(results.page())
    log.info("wrote %s and .md", results.path)
    return 1 if results.failures else 0


def show_doctor(env: Environment, lacking: str) -> None:
    """Print what the doctor says, as far as it concerns GPUs."""
    gpus = ", ".join(f"{gpu.name} ({gpu.sm})" for gpu in env.gpus) or "none"
    print(f"GPUs: {gpus}; driver: {env.nvidia.driver or 'none'}")
    for name, reason in available_backends().items():
        print(f"  {name}: {reason or 'ready'}")
    for finding in diagnose(env):
        print(
            f"  {finding.level}: {finding.subject}: {finding.problem}" + (f"; {finding.mend}" if finding.mend else "")
        )
    if lacking:
        print(f"without --dry-run this would stop here: {lacking}")


def show_plan(bundles: list[Bundle], backends: Any) -> None:
    """Print what would run on a GPU."""
    for bundle in bundles:
        for spec in bundle.manifest.networks.values():
            for variant in variants(spec, backends):
                print(f"would run {bundle.path.name}/{spec.name} on {variant}")


def _part(
    part: str, options: argparse.Namespace, bundles: list[Bundle], working: list[str], env: Environment, work: Path
) -> Iterator[dict[str, Any]]:
    dry: bool = options.dry_run
    backends = [options.stand_in] if dry else working
    match part:
        case "plans":
            for bundle in bundles:
                yield from build_missing(bundle, options.backends or GPU_BACKENDS if dry else working, env, dry=dry)
        case "parity":
            for bundle in bundles:
                yield from check_parity(bundle, backends)
        case "polygraphy" if has_polygraphy():
            for bundle in bundles:
                yield from compare_with_polygraphy(bundle, [b for b in backends if dry or b.startswith("tensorrt")])
        case "polygraphy":
            yield {"status": "left out", "reason": "not installed: pip install 'sfumato[debug]'"}
        case "latency":
            for bundle in bundles:
                yield from bundle_latency(bundle, backends, options.rounds)
        case "unet":
            yield from _unet(options, backends, env, work)
        case _:
            yield _tests(dry)


def _unet(options: argparse.Namespace, backends: list[str], env: Environment, work: Path) -> Iterator[dict[str, Any]]:
    """Export Stable Diffusion 1.5's networks with random weights (tiny ones in a dry run), and time the UNet."""
    dry: bool = options.dry_run
    work.mkdir(parents=True, exist_ok=True)
    path = work / "bundle"
    try:
        folder = make_folder(work, dry)
        if not (path / "manifest.json").is_file():
            measure_export(folder, path, work / "export.log", limit=1200)
    except WorkerFailed as failure:
        yield {"network": "unet", "variant": "export", "failed": str(failure)}
        return
    bundle = Bundle.open(path, verify=False)
    if not dry:
        build_missing(bundle, backends, env, dry=False, networks=("unet",))
    size = options.latents or (8 if dry else 64)
    device = "cpu" if dry else "cuda"
    yield from unet_latency(folder, bundle, backends, size, options.rounds, quick=dry, device=device)


def _tests(dry: bool) -> dict[str, Any]:
    """Run ``tests/gpu``; a dry run collects them."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", *(["--collect-only"] if dry else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ))
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    status = "failed" if done.returncode else "collected" if dry else "passed"
    return {"command": "pytest " + " ".join(command[3:]), "status": status, "summary": lines[-1] if lines else ""}


def _bundles() -> list[Path]:
    return sorted(path.parent for path in (ROOT / "bundles").glob("*/manifest.json"))


if __name__ == "__main__":
    sys.exit(main())
