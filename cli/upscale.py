"""``sfumato upscale``: larger pictures (super-resolution models)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    BatchSize,
    BundleBackend,
    BundlePath,
    Eta,
    Metrics,
    NumImages,
    Official,
    Output,
    RunPrecision,
    SamplerName,
    SaveStages,
    Seed,
    Spacing,
    Steps,
    Threads,
    Tile,
    parse_size,
    size_option,
)
from .run import Options, given, make

__all__ = ["command"]


def command(
    bundle: BundlePath,
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="The picture to enlarge.")],
    size: Annotated[
        str | None,
        size_option(
            "Size of the result in pixels; the picture is resized for it first.",
            "the picture's, times the model's factor",
        ),
    ] = None,
    num_images: NumImages = 1,
    seed: Seed = 0,
    steps: Steps = None,
    sampler: SamplerName = None,
    eta: Eta = None,
    spacing: Spacing = None,
    official: Official = False,
    backend: BundleBackend = "auto",
    precision: RunPrecision = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    tile: Tile = None,
    output: Output = Path("out.png"),
    save_stages: SaveStages = None,
    metrics: Metrics = False,
) -> None:
    """Enlarge a picture with a super-resolution model."""
    make(
        Options(bundle, backend, precision, threads, output, save_stages, metrics),
        "upscale",
        picture,
        num_images=num_images,
        seed=seed,
        official=official,
        **given(
            size=parse_size(size),
            steps=steps,
            sampler=sampler,
            eta=eta,
            spacing=spacing,
            batch_size=batch_size,
            tile=tile,
        ),
    )
