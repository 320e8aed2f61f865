"""``sfumato edit``: pictures from a picture, noised and led to a prompt, or inverted and led along a direction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import pix2pix
from .options import (
    BatchSize,
    BundlePath,
    Eta,
    Fused,
    GradientBackend,
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
    Seed,
    Spacing,
    Steps,
    Strength,
    Threads,
    Tile,
    parse_size,
    size_option,
)
from .run import Options, given, make

__all__ = ["command"]


def command(
    bundle: BundlePath,
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="The picture to start from.")],
    prompt: Prompt = None,
    strength: Strength = None,
    label: Label = None,
    negative_prompt: NegativePrompt = None,
    size: Annotated[
        str | None,
        size_option(
            "Resize to this first; along a direction, if not given, so that its longer side is the bundle's.",
            "the picture's",
        ),
    ] = None,
    num_images: NumImages = 1,
    seed: Seed = 0,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    sampler: SamplerName = None,
    eta: Eta = None,
    spacing: Spacing = None,
    official: Official = False,
    backend: GradientBackend = "auto",
    precision: RunPrecision = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    tile: Tile = None,
    fused: Fused = None,
    source_word: pix2pix.SourceWord = None,
    target_word: pix2pix.TargetWord = None,
    direction: pix2pix.DirectionFile = None,
    caption: pix2pix.Caption = None,
    attention_guidance: pix2pix.AttentionGuidance = None,
    edit_multiplier: pix2pix.EditMultiplier = None,
    inversion: pix2pix.InversionName = None,
    regularize: pix2pix.Regularize = True,
    shared_latent: pix2pix.SharedLatent = False,
    low_memory: pix2pix.LowMemory = False,
    output: Output = Path("out.png"),
    save_stages: SaveStages = None,
    sheet: pix2pix.Sheet = None,
    metrics: Metrics = False,
) -> None:
    """Change a picture: noise it part of the way, and lead it to the prompt.

    With --source-word and --target-word, or --direction: invert it under its caption (--prompt), and sample it again
    along the direction while its attention keeps to the picture's (pix2pix-zero).
    """
    if prompt is not None and caption is not None:
        raise typer.BadParameter("the prompt is given twice; give it as PROMPT or as --prompt")
    text = [said for said in (prompt, caption) if said is not None]
    options = Options(bundle, backend, precision, threads, output, save_stages, metrics, sheet=sheet)
    along = {
        "attention_guidance": attention_guidance,
        "edit_multiplier": edit_multiplier,
        "inversion": inversion,
        "regularize": None if regularize else False,
    }
    words = {"source_word": source_word, "target_word": target_word, "direction": direction}
    flags = {"no_regularize": not regularize, "shared_latent": shared_latent, "low_memory": low_memory, "sheet": sheet}
    sampling = given(
        label=label,
        strength=strength,
        negative_prompt=negative_prompt,
        size=parse_size(size),
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        eta=eta,
        spacing=spacing,
        batch_size=batch_size,
        tile=tile,
        fused=fused,
    )
    if pix2pix.leads(**words, **along, **flags):
        pix2pix.lead(
            options,
            "edit",
            picture,
            *text,
            shared=shared_latent,
            apart=low_memory,
            **words,
            **along,
            **sampling,
            num_images=None if num_images == 1 else num_images,
            official=official or None,
        )
    else:
        make(options, "edit", picture, *text, num_images=num_images, official=official, **sampling)
