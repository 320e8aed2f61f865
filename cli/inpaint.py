"""``sfumato inpaint``: a part of a picture made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    MODEL,
    BatchSize,
    BundleBackend,
    BundlePath,
    Eta,
    GuidanceScale,
    Label,
    Metrics,
    NegativePrompt,
    NumImages,
    Official,
    Output,
    PictureSize,
    Prompt,
    RunPrecision,
    SamplerName,
    SaveStages,
    Seed,
    Spacing,
    Steps,
    Threads,
    Tile,
    parse_size,
)
from .run import Options, given, make

__all__ = ["command"]


def command(
    bundle: BundlePath,
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="The picture.")],
    mask: Annotated[
        Path, typer.Argument(metavar="MASK", help="A picture of the same size, white where it is to be made anew.")
    ],
    prompt: Prompt = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How far the hole may go, above 0 to 1: little changes less, 1 starts from noise alone.",
            show_default="1",
            rich_help_panel=MODEL,
        ),
    ] = None,
    label: Label = None,
    negative_prompt: NegativePrompt = None,
    size: PictureSize = None,
    num_images: NumImages = 1,
    seed: Seed = 0,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
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
    """Make the masked part of a picture anew."""
    make(
        Options(bundle, backend, precision, threads, output, save_stages, metrics),
        "inpaint",
        picture,
        mask,
        *([] if prompt is None else [prompt]),
        num_images=num_images,
        seed=seed,
        official=official,
        **given(
            label=label,
            strength=strength,
            size=parse_size(size),
            negative_prompt=negative_prompt,
            steps=steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            eta=eta,
            spacing=spacing,
            batch_size=batch_size,
            tile=tile,
        ),
    )
