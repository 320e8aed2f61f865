"""pix2pix-zero at Stable-Diffusion-1.5 size with random weights: sfumato beside the official data flow in torch.

    python benchmarks/pix2pix_zero.py [--latents 32 64] [--steps 50] [--rounds 3] [--quick] [--work F] [--out F]

An inversion step, a guidance step (both passes) and a whole edit, latent to latents, in every variant in turns within
one run; peak memory (VmHWM) of a fresh process that made one whole edit. Ratios are to torch in float32. Goals: a
guidance step and a whole edit 4 times as fast, at most half the memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import re
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from export_memory import make_folder
from models import FULL, QUICK
from report import default_folder, machine
from workers import Worker, WorkerFailed, physical_cores

log = logging.getLogger(__name__)

VARIANTS = {"sfumato": "p2p_sfumato", "torch fp32": "p2p_fp32", "torch bf16": "p2p_bf16"}
REFERENCE = "torch fp32"
PARTS = ("inversion", "guidance")
LIMIT = 3600.0
GOALS = {"guidance": 4.0, "edit": 4.0, "memory": 0.5}


def measure(
    folder: Path, bundle: Path, work: Path, latents: int, steps: int, rounds: int, count: int
) -> dict[str, Any]:
    """Every variant at one size: seconds of each part, of a whole edit, and peak bytes."""
    result: dict[str, dict[str, Any]] = {}
    times: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        ready: dict[str, Worker] = {}
        for name, kind in VARIANTS.items():
            log.info("%d latents: %s", latents, name)
            worker = stack.enter_context(Worker(kind, work / f"{kind}-{latents}.log", physical_cores()))
            try:
                result[name] = dict(worker.ask("load", limit=LIMIT, folder=str(folder), bundle=str(bundle)))
                for part in PARTS:  # compiles, and fills caches
                    worker.ask(part, limit=LIMIT, latents=latents, steps=steps, count=1)
            except WorkerFailed as failure:
                result[name] = {"failed": str(failure)}
                worker.close()
                continue
            ready[name], times[name] = worker, {part: [] for part in PARTS}
        for _ in range(rounds):
            for name, worker in ready.items():
                for part in PARTS:
                    times[name][part].append(worker.ask(part, limit=LIMIT, latents=latents, steps=steps, count=count))
    for name, parts in times.items():
        result[name] |= {part: {"fastest": min(s), "median": median(s), "n": len(s)} for part, s in parts.items()}
    for name in times:  # in processes of their own, one after the other: what one edit needs
        with Worker(VARIANTS[name], work / f"{VARIANTS[name]}-{latents}-edit.log", physical_cores()) as worker:
            try:
                worker.ask("load", limit=LIMIT, folder=str(folder), bundle=str(bundle))
                result[name]["edit"] = worker.ask("edit", limit=LIMIT, latents=latents, steps=steps)
                result[name] |= worker.memory()
            except WorkerFailed as failure:
                result[name]["edit_failed"] = str(failure)
    return result


def ratios(rows: dict[str, Any]) -> dict[str, dict[str, float]]:
    """How many times as fast as torch in float32, and how much of its memory."""
    base, found = rows.get(REFERENCE, {}), dict[str, dict[str, float]]()
    for name, row in rows.items():
        own = {p: base[p]["fastest"] / row[p]["fastest"] for p in PARTS if p in row and p in base}
        if "edit" in row and "edit" in base:
            own |= {"edit": base["edit"] / row["edit"], "memory": row["peak"] / base["peak"]}
        found[name] = own
    return found


def table(facts: dict[str, Any], sizes: dict[str, Any], steps: int, *, quick: bool) -> str:
    """The page."""
    lines = [
        f"# pix2pix-zero on {facts['class']}",
        "",
        f"{facts['processor']}, {facts['memory_gb']} GB; {steps} steps.",
    ]
    lines += ["", "Tiny networks: these numbers say that the benchmark runs, and nothing else."] if quick else []
    for size, rows in sizes.items():
        lines += ["", f"## {size}x{size} latents", ""]
        lines.append("| variant | computed in | inversion step | guidance step | whole edit | peak memory |")
        lines.append("| --- | --- | --- | --- | --- | --- |")
        for name, row in rows.items():
            if "failed" in row:
                lines.append(f"| {name} | {row['failed']} | | | | |")
                continue
            own = ratios(rows)[name]
            cells = [f"{1e3 * row[p]['fastest']:.0f} ms ({own.get(p, 0):.2f}x)" for p in PARTS]
            cells.append(f"{row['edit']:.1f} s ({own['edit']:.2f}x)" if "edit" in own else row.get("edit_failed", ""))
            cells.append(f"{row['peak'] / 1e9:.2f} GB ({own['memory']:.2f}x)" if "memory" in own else "")
            lines.append(f"| {name} | {row['precision']} | {' | '.join(cells)} |")
        if not quick and "sfumato" in rows:
            own = ratios(rows)["sfumato"]
            met = {k: v <= GOALS[k] if k == "memory" else v >= GOALS[k] for k, v in own.items() if k in GOALS}
            told = [f"{k} {own[k]:.2f} (goal {GOALS[k]}): {'met' if ok else 'MISSED'}" for k, ok in met.items()]
            lines += ["", "Goals: " + "; ".join(told) + "."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Make, export, measure, write, show."""
    parser = argparse.ArgumentParser(description="pix2pix-zero beside the official data flow.")
    parser.add_argument("--latents", type=int, nargs="+", help="sides of the latents (default: 32; quick: 16)")
    parser.add_argument("--steps", type=int, default=0, help="of inversion and sampling (default: 50; quick: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of steps (default: 3)")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try the benchmark itself")
    parser.add_argument("--work", type=Path, help="folder for models and logs, kept (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    steps = options.steps or (4 if options.quick else 50)
    facts, sizes = machine(), dict[str, Any]()
    stem = re.sub(r"[^a-z0-9]+", "-", facts["class"].lower()).strip("-") + "-pix2pix-zero"
    path = (options.out or default_folder(options.quick)) / f"{stem}.json"
    default = QUICK.latents[-1:] if options.quick else FULL.latents[:1]
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sfumato-bench-")))
        work = work.absolute()
        work.mkdir(parents=True, exist_ok=True)
        folder, bundle = make_folder(work, options.quick), work / "bundle-p2p"
        if not (bundle / "manifest.json").is_file():
            with Worker("p2p_make", work / "export.log", physical_cores()) as worker:
                log.info("exporting")
                worker.ask("bundle", limit=2 * LIMIT, folder=str(folder), out=str(bundle))
        for latents in options.latents or default:
            count = min(2, steps - 2)
            sizes[str(latents)] = measure(folder, bundle, work, latents, steps, options.rounds, count)
            path.parent.mkdir(parents=True, exist_ok=True)
            tree = {"machine": facts, "quick": options.quick, "steps": steps, "sizes": sizes}
            path.write_text(json.dumps(tree, indent=1) + "\n")
            path.with_suffix(".md").write_text(table(facts, sizes, steps, quick=options.quick))
    print(table(facts, sizes, steps, quick=options.quick))
    return 0


if __name__ == "__main__":
    sys.exit(main())
