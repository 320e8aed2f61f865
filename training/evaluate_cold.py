"""Evaluation of a cold-diffusion bundle on pictures that it never saw, through its engine: what is measured runs.

``python -m sfumato.training.evaluate_cold bundles/cold-blur --data FOLDER --out results.json --sheet sheet.png`` prints
the table of ``docs/cold_diffusion.md``: degraded pictures, direct reconstruction, algorithms 1 and 2, each with PSNR,
SSIM, RMSE and the Fréchet distance of DINOv2 features to those of the originals. The same bundle, seed and processor
give the same numbers.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import load
from ..engines.binding import Array
from ..engines.storage import atomic_write
from ..engines.target import detect
from ..errors import ParameterError
from ..runtime import image as pictures_io
from ..runtime.metrics import frechet_distance
from ..runtime.systems.cold_diffusion import ColdDiffusion
from ..runtime.systems.cold_result import Restored, quality
from . import command
from .dinov2 import DinoV2
from .evaluate_emoji import machine_class
from .pictures import EmojiPictures, FolderPictures, Pictures

__all__ = ["CEILING", "evaluate", "frechet", "main", "scores", "sheet", "table"]

log = logging.getLogger(__name__)

CEILING = 50.0
"""dB: nearer pictures (rounding to 8 bits alone makes 59) count as this near; equal ones would be infinite."""

ROWS = ("degraded", "direct", "algorithm 1", "algorithm 2")


def scores(made: Array, originals: Array) -> dict[str, float]:
    """Means over pictures, uint8 (N, H, W, 3) both: ``psnr`` with `CEILING`, ``ssim``, ``rmse``; ``psnr_low``, 5 %."""
    found = [quality(a, b) for a, b in zip(made, originals, strict=True)]
    decibels = [min(CEILING, CEILING if f["psnr"] is None else f["psnr"]) for f in found]
    return {
        "psnr": float(np.mean(decibels)),
        "psnr_low": float(np.percentile(decibels, 5)),
        "ssim": float(np.mean([f["ssim"] or 0.0 for f in found])),
        "rmse": float(np.mean([f["rmse"] for f in found])),
    }


def frechet(a: Array, b: Array) -> float:
    """The Fréchet distance of two sets of features (N, D)."""
    moments = [(x.mean(axis=0), np.cov(x.astype(np.float64), rowvar=False)) for x in (a, b)]
    return frechet_distance(*moments[0], *moments[1])


def evaluate(
    system: ColdDiffusion,
    clean: Array,
    *,
    features: Callable[[Array], Array] | None = None,
    severity: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], list[Restored]]:
    """Results of every row, and what algorithm 2 made.

    Arguments:
        system: The bundle's.
        clean: uint8 (N, H, W, 3).
        features: uint8 pictures -> (N, D), for the Fréchet distance.
        severity: How far to degrade, T if None.
        seed: Picture i has seed + i.
    """
    options: dict[str, Any] = {"severity": severity, "seed": seed}
    made = {algorithm: system.restore(list(clean), algorithm=algorithm, **options) for algorithm in (2, 1)}
    sets: dict[str, list[Array | None]] = {
        "degraded": [one.degraded for one in made[2]],
        "direct": [one.direct for one in made[2]],
        "algorithm 1": [one.image for one in made[1]],
        "algorithm 2": [one.image for one in made[2]],
    }
    stacked = {name: np.stack([picture for picture in found if picture is not None]) for name, found in sets.items()}
    rows = {name: scores(stacked[name], clean) for name in ROWS}
    if features is not None:
        reference = features(clean)
        for name in ROWS:
            rows[name]["frechet"] = frechet(features(stacked[name]), reference)
    results: dict[str, Any] = {
        "pictures": len(clean),
        "severity": made[2][0].severity,
        "seconds_a_picture": made[2][0].timings["total"]["total"] / len(clean),
        "rows": rows,
    }
    return results, made[2]


def sheet(made: Sequence[Restored], count: int = 12) -> Array:
    """Columns of original, degraded, direct and restored pictures, evenly chosen; uint8 (H, W, 3)."""
    chosen = [made[i] for i in np.linspace(0, len(made) - 1, min(count, len(made))).round().astype(int)]
    rows = [[getattr(one, name) for one in chosen] for name in ("original", "degraded", "direct", "restored")]
    return pictures_io.contact_sheet([picture for row in rows for picture in row], columns=len(chosen))


def table(results: Mapping[str, Any]) -> str:
    """The Markdown table."""
    head = "| | PSNR, dB | worst 5 %, dB | SSIM | RMSE | Fréchet, DINOv2 |\n|---|---:|---:|---:|---:|---:|"
    lines = [
        f"| {name} | {row['psnr']:.2f} | {row['psnr_low']:.1f} | {row['ssim']:.3f} | {row['rmse']:.4f} "
        f"| {format(row['frechet'], '.1f') if 'frechet' in row else ''} |"
        for name, row in results["rows"].items()
    ]
    return "\n".join([head, *lines])


def main(argv: list[str] | None = None) -> int:
    """See the module's head. The exit status is 1 when ``--gain`` is not reached."""
    parser = command.parser(__doc__)
    parser.add_argument("bundle", type=Path, help="its folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of npm's node_modules, or of pictures")
    parser.add_argument("--pictures", choices=("emoji", "folder"), default="emoji", help="what --data holds")
    parser.add_argument("--count", type=int, default=200, help="most pictures to measure")
    parser.add_argument("--severity", type=int, help="how far to degrade; the bundle's T if not given")
    parser.add_argument("--seed", type=int, default=0, help="picture i has this seed + i")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--sheet", type=Path, help="picture to write: original, degraded, direct, restored")
    parser.add_argument("--no-features", action="store_true", help="leave the Fréchet distance out")
    parser.add_argument("--gain", type=float, help="dB that algorithm 2 has to gain over the degraded pictures")
    parser.add_argument("--backend", default="auto", help="library that runs the network")
    parser.add_argument("--precision", help="what to compute in; the fastest here if not given")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    command.outputs(args.out, sheet=args.sheet)
    with load(args.bundle, backend=args.backend, precision=args.precision) as system:
        if not isinstance(system, ColdDiffusion):
            raise ParameterError(f"{args.bundle} is a bundle of {system.manifest.system}; pass one of cold-diffusion")
        size = system.settings.image_size[0]
        source: Pictures = (EmojiPictures if args.pictures == "emoji" else FolderPictures)(args.data, size)
        clean = pictures_io.from_float(source.unseen()[: args.count])
        judge = None if args.no_features else DinoV2()
        features = None if judge is None else (lambda pictures: judge.cached(pictures, args.data).token)
        results, made = evaluate(system, clean, features=features, severity=args.severity, seed=args.seed)
        engine = system.engine()
        results |= {
            "bundle": system.manifest.name,
            "machine": machine_class(detect()),
            "backend": engine.backend,
            "precision": engine.precision,
        }
    sys.stdout.write(table(results) + "\n")
    if args.out is not None:
        atomic_write(args.out, (json.dumps(results, indent=1) + "\n").encode())
    if args.sheet is not None:
        pictures_io.write(args.sheet, sheet(made))
    gain = results["rows"]["algorithm 2"]["psnr"] - results["rows"]["degraded"]["psnr"]
    log.info("%s: algorithm 2 gains %.2f dB on %d pictures", results["bundle"], gain, len(clean))
    return int(args.gain is not None and gain < args.gain)


if __name__ == "__main__":
    raise SystemExit(command.run(main))
