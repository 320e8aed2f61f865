"""Evaluation of the emoji model through its compiled bundle: no torch, what is measured is what runs.

``python -m sfumato.training.evaluate_emoji bundles/emoji-ldm --data FOLDER --out results.json --sheet sheet.png``
prints the table of ``bundles/README.md``. The same bundle, seed and processor give the same numbers.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import load
from ..engines.binding import Array
from ..engines.bundle import Bundle
from ..engines.engine import open_engine
from ..engines.storage import atomic_write
from ..engines.target import CpuFacts, detect
from ..runtime import image as pictures_io
from ..runtime.systems.base import System
from . import command, emoji
from . import judge_emoji as judge
from .dinov2 import DinoV2
from .emoji import Emoji

__all__ = ["RoundTrip", "evaluate", "generate", "machine_class", "main", "sheet", "table"]

log = logging.getLogger(__name__)


class RoundTrip:
    """Pictures through the bundle's first stage and back, by the posterior's mean.

    Arguments:
        bundle: A bundle with a KL first stage.
        backend: As for `sfumato.load`, `precision` too.
    """

    def __init__(self, bundle: Bundle, *, backend: Any = "auto", precision: Any = None, batch: int = 32) -> None:
        self.batch = batch
        self._encoder, self._decoder = (
            open_engine(bundle, name, backend=backend, precision=precision) for name in ("vae_encoder", "vae_decoder")
        )

    @property
    def precision(self) -> str:
        """What the decoder computes in."""
        return self._decoder.precision

    def __call__(self, images: Array) -> Array:
        """uint8 (N, H, W, 3) -> uint8 (N, H, W, 3)."""
        back = np.empty_like(images)
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            mean = self._encoder(image=pictures_io.to_float(part))["mean"]
            back[start : start + self.batch] = pictures_io.from_float(self._decoder(z=mean.copy())["image"])
        return back


def generate(system: System, asked: list[Emoji], options: dict[str, Any], *, seed: int, batch: int = 8) -> Array:
    """A picture for the caption of each, picture i from seed + i: uint8 (N, H, W, 3)."""
    images = list[Array]()
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        seeds = [seed + start + i for i in range(len(part))]
        edits = system.generate([p.caption for p in part], seed=seeds, batch_size=batch, **options)
        images += [edit.image for edit in edits]
        log.info("%d of %d pictures", len(images), len(asked))
    return np.stack(images)


def evaluate(
    bundle_path: Path,
    data: Path,
    *,
    count: int = 200,
    held_out_count: int | None = None,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    backend: Any = "auto",
    precision: Any = None,
) -> tuple[dict[str, Any], Array]:
    """The results and the contact sheet.

    Arguments:
        bundle_path: The bundle.
        data: Folder of `emoji.load`; features of the training pictures are kept in it.
        count: Training captions to ask for.
        held_out_count: Held-out captions to ask for, None for all there are.
        options: For `System.generate`; what is left out comes from the bundle's defaults.
    """
    options = options or {}
    everything = emoji.load(data)
    training = [e for e in emoji.things(everything) if not e.held_out]
    unseen = judge.unseen(emoji.things(everything))
    asked = {
        "training": judge.draw(training, count, np.random.default_rng((seed, 1))),
        "held_out": judge.draw(unseen, held_out_count or len(unseen), np.random.default_rng((seed, 2))),
    }
    dino = DinoV2()
    gallery = judge.on_white(training)
    log.info("DINOv2 features of %d training pictures", len(training))
    gallery_features = dino.cached(gallery, data)

    bundle = Bundle.open(bundle_path)
    round_trip = RoundTrip(bundle, backend=backend, precision=precision)
    results: dict[str, Any] = {
        "bundle": {"name": bundle.manifest.name, "unet": bundle.digest("unet")[:16], "precision": round_trip.precision},
        "machine": machine_class(detect()),
        "options": {"seed": seed, **{k: v for k, v in options.items()}},
        "autoencoder": judge.autoencoder(judge.unseen(everything), round_trip, np.random.default_rng((seed, 3))),
    }
    with load(bundle_path, backend=backend, precision=precision) as system:
        made = {name: generate(system, group, options, seed=seed) for name, group in asked.items()}
    defaults = bundle.manifest.settings["defaults"]
    results["defaults"] = defaults

    real = {name: judge.on_white(group) for name, group in asked.items()}
    features = {name: dino(images) for name, images in real.items()}
    back = round_trip(real["training"])
    back_features = dino(back)
    limits = judge.copy_limits(real["training"], back, features["training"], back_features)
    results["near_copy"] = {"psnr": round(limits.psnr, 2), "cosine": round(limits.cosine, 4)}
    results["ceiling"] = judge.retrieval(back_features, features["training"])
    results["training_pictures"] = {"count": len(training), "cosine": judge.real_neighbours(gallery_features)}
    for name, group in asked.items():
        found = dino(made[name])
        results[name] = judge.retrieval(found, features[name])
        results[name] |= judge.copies(made[name], found, group, gallery, gallery_features, training, limits)
    return results, sheet(asked["training"][:24], made["training"][:24], real["training"][:24])


def sheet(asked: list[Emoji], made: Array, real: Array) -> Array:
    """Each generated picture (left) beside the real one of its caption, at twice the size."""
    gap = np.full((len(made), made.shape[1], 2, 3), 255, dtype=np.uint8)
    pairs = np.concatenate([made, gap, real], axis=2).repeat(2, axis=1).repeat(2, axis=2)
    return pictures_io.contact_sheet(list(pairs), captions=[e.caption for e in asked], columns=4, gap=8)


def machine_class(facts: CpuFacts) -> str:
    """A class of processors, e.g. "2-core x86-64 with AMX"."""
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2", "bf16": "BF16"}
    best = next((name for flag, name in names.items() if flag in facts.flags), None)
    kind = facts.machine.replace("_", "-")
    return f"{facts.cores}-core {kind}" + (f" with {best}" if best else "")


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""

    def share(value: dict[str, float]) -> str:
        return f"{value['share']:.1%} ({value['low']:.0%} to {value['high']:.0%})"

    def spread(value: dict[str, float], unit: str = "") -> str:
        return f"{value['median']:.3g}{unit}, {value['p95']:.3g}{unit}"

    training, held_out, codec = results["training"], results["held_out"], results["autoencoder"]
    limits, ceiling, others = results["near_copy"], results["ceiling"], results["training_pictures"]
    settings = {**results["defaults"], **results["options"]}
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("captions asked", lambda r: str(r["captions"])),
        ("retrieves its own picture, top-1", lambda r: share(r["top1"])),
        ("top-5", lambda r: share(r["top5"])),
        ("chance, top-1", lambda r: f"{r['chance']:.1%}"),
        ("top-1 by the mean of patch tokens", lambda r: share(r["patch_mean_top1"])),
        ("nearest training picture is its own", lambda r: share(r["nearest_is_own"]) if r is training else "has none"),
        ("cosine to the nearest training picture: median, p95", lambda r: spread(r["cosine"])),
        ("PSNR to the nearest training picture: median, p95", lambda r: spread(r["psnr"], " dB")),
        (f"near-copies in pixels (PSNR ≥ {limits['psnr']:.1f} dB)", lambda r: share(r["near_copies_by_pixels"])),
        (f"near-copies in features (cosine ≥ {limits['cosine']:.3f})", lambda r: share(r["near_copies_by_features"])),
        ("near-copies by either", lambda r: share(r["near_copies"])),
    ]
    lines = [
        f"Measured on a {results['machine']}, {results['bundle']['precision']}, {settings['sampler']}, "
        f"{settings['steps']} steps, guidance scale {settings['guidance_scale']:g}, seed {settings['seed']}. "
        "In brackets: 95 % confidence intervals.",
        "",
        f"Autoencoder, {codec['pictures']} pictures it never saw: {codec['white']['psnr']:.2f} dB PSNR over white "
        f"(5 % below {codec['white']['p5']:.1f}), {codec['coloured']['psnr']:.2f} dB over colours.",
        "",
        "| | training captions | held-out captions |",
        "| --- | ---: | ---: |",
        *(f"| {label} | {value(training)} | {value(held_out)} |" for label, value in rows),
        "",
        f"The real pictures, sent through the autoencoder, retrieve themselves in {ceiling['top1']['share']:.1%}. "
        f"The cosine of a training picture to the nearest of the {others['count'] - 1} others has the median and p95 "
        f"{spread(others['cosine'])}.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """See the module's head."""
    parser = command.parser(__doc__)
    parser.add_argument("bundle", type=Path, help="its folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with node_modules")
    parser.add_argument("--captions", type=int, default=200, help="training captions to ask for")
    parser.add_argument("--held-out", type=int, help="held-out captions to ask for; all by default")
    parser.add_argument("--steps", type=int, help="sampling steps; the bundle's if not given")
    parser.add_argument("--guidance-scale", type=float, help="the bundle's if not given")
    parser.add_argument("--sampler", help="the bundle's if not given")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--backend", default="auto", help="library that runs the networks")
    parser.add_argument("--precision", help="what to compute in; the fastest here if not given")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--sheet", type=Path, help="PNG of 24 pictures, generated beside real")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    command.outputs(args.out, sheet=args.sheet)
    options = {"steps": args.steps, "guidance_scale": args.guidance_scale, "sampler": args.sampler}
    results, picture = evaluate(
        args.bundle,
        args.data,
        count=args.captions,
        held_out_count=args.held_out,
        seed=args.seed,
        options={k: v for k, v in options.items() if v is not None},
        backend=args.backend,
        precision=args.precision,
    )
    if args.out:
        atomic_write(args.out, json.dumps(results, indent=2, ensure_ascii=False).encode() + b"\n")
    if args.sheet:
        pictures_io.write(args.sheet, picture)
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    raise SystemExit(command.run(main))
