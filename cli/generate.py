"""``sfumato generate``: pictures from a prompt, a class, another picture, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    MODEL,
    Algorithm,
    BatchSize,
    BundleBackend,
    BundlePath,
    Eta,
    Fused,
    GuidanceScale,
    Label,
    Metrics,
    NegativePrompt,
    NumImages,
    Official,
    Output,
    Prompt,
    RunPrecision,
    SamplerName,
    SaveStages,
    Second,
    Seed,
    Severity,
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
    prompt: Prompt = None,
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
    severity: Severity = None,
    algorithm: Algorithm = None,
    noise: Annotated[
        float | None,
        typer.Option(
            help="Noise that breaks the symmetry of cold generation.",
            show_default="the bundle's",
            rich_help_panel=MODEL,
        ),
    ] = None,
    second: Second = None,
    official: Official = False,
    backend: BundleBackend = "auto",
    precision: RunPrecision = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    tile: Tile = None,
    fused: Fused = None,
    output: Output = Path("out.png"),
    save_stages: SaveStages = None,
    metrics: Metrics = False,
) -> None:
    """Make pictures from a prompt, a class, or nothing; with Cold Diffusion from a colour, noise, or a picture."""
    make(
        Options(bundle, backend, precision, threads, output, save_stages, metrics),
        "generate",
        *([] if prompt is None else [prompt]),
        num_images=num_images,
        seed=seed,
        **given(
            official=official or None,
            severity=severity,
            algorithm=algorithm,
            noise=noise,
            second=second,
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
            fused=fused,
        ),
    )
