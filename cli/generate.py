"""``sfumato generate``: pictures from a prompt, a class, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
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
    RunPrecision,
    SamplerName,
    SaveStages,
    Seed,
    Size,
    Spacing,
    Steps,
    Threads,
    Tile,
    Tokens,
    parse_size,
    parse_tokens,
)
from .run import Options, given, make

__all__ = ["command"]


def command(
    bundle: BundlePath,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to show (text models).")] = None,
    label: Label = None,
    tokens: Tokens = None,
    negative_prompt: NegativePrompt = None,
    size: Size = None,
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
    """Make pictures from a prompt, a class, or nothing."""
    make(
        Options(bundle, backend, precision, threads, output, save_stages, metrics),
        "generate",
        *([] if prompt is None else [prompt]),
        num_images=num_images,
        seed=seed,
        official=official,
        **given(
            label=label,
            tokens=parse_tokens(tokens),
            negative_prompt=negative_prompt,
            size=parse_size(size),
            steps=steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            eta=eta,
            spacing=spacing,
            batch_size=batch_size,
            tile=tile,
        ),
    )
