"""Options that several verbs share, as annotated types."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

__all__ = [
    "Algorithm",
    "BackendName",
    "BatchSize",
    "BundlePath",
    "BundleBackend",
    "Eta",
    "Fused",
    "GradientBackend",
    "GuidanceScale",
    "Json",
    "Label",
    "Metrics",
    "NegativePrompt",
    "NumImages",
    "Official",
    "Output",
    "PictureSize",
    "PrecisionName",
    "Prompt",
    "RunPrecision",
    "SamplerName",
    "SaveStages",
    "Second",
    "Seed",
    "Severity",
    "Size",
    "Spacing",
    "Steps",
    "Strength",
    "Threads",
    "Tile",
    "Tokens",
    "check_picture",
    "parse_size",
    "parse_tokens",
    "size_option",
]

BackendName: TypeAlias = Literal["auto", "openvino", "onnxruntime", "tensorrt", "tensorrt_rtx", "onnxruntime_cuda"]
PrecisionName: TypeAlias = Literal["fp32", "fp16", "bf16"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MODEL, RUN, OUT = "What is made", "How it is run", "What is written"


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "128x64" (width x height) or "64" -> (height, width) in pixels; wrong usage if it is neither."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"--size {text!r}: write WIDTHxHEIGHT, as in 128x64, or one number for both")
    width = int(match[1])
    return int(match[2] or width), width


def parse_tokens(text: str | None) -> list[int] | None:
    """ "1,2,3" -> [1, 2, 3]; wrong usage if it is not such a list."""
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--tokens {text!r}: write whole numbers with commas between") from None


def check_picture(path: Path | None) -> Path | None:
    """Refuse a picture that could not be written, before it is made."""
    if path is not None and path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a picture in it, such as {path / 'out.png'}")
    if path is not None and path.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(f"{path} has no suffix of a picture; use {', '.join(SUFFIXES)}")
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"{path.parent} is not a folder; make it first")
    if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
        raise typer.BadParameter(f"{path} may not be written; choose another folder")
    return path


def size_option(text: str, default: str) -> Any:
    """``--size`` of a verb: what it does, and what is taken where it is not given."""
    return typer.Option(metavar="WIDTHxHEIGHT", help=text, show_default=default, rich_help_panel=MODEL)


BundlePath: TypeAlias = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")]
Prompt: TypeAlias = Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to show (text models).")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

Seed: TypeAlias = Annotated[
    int,
    typer.Option(
        help="Same seed, same picture: the noise that torch.manual_seed(SEED) gives; -2^63 to 2^64-1.",
        rich_help_panel=MODEL,
    ),
]
Steps: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Sampling steps, 1 to the timesteps of the bundle (usually 1000).",
        show_default="the bundle's",
        rich_help_panel=MODEL,
    ),
]
SamplerName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        help="ddim, ddpm, plms, euler, euler_ancestral, heun, dpmpp_2m, unipc or lcm.",
        show_default="the bundle's",
        rich_help_panel=MODEL,
    ),
]
GuidanceScale: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Strength of the prompt over no prompt, 0 to 1000; 1 and below is none.",
        show_default="the bundle's",
        rich_help_panel=MODEL,
    ),
]
NegativePrompt: TypeAlias = Annotated[str | None, typer.Option(help="What to lead away from.", rich_help_panel=MODEL)]
Size: TypeAlias = Annotated[str | None, size_option("Size in pixels.", "the bundle's")]
PictureSize: TypeAlias = Annotated[str | None, size_option("Resize to this first.", "the picture's")]
NumImages: TypeAlias = Annotated[int, typer.Option(min=1, help="Pictures to make.", rich_help_panel=MODEL)]
Strength: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="How far the picture may go, above 0 to 1: little changes less, 1 keeps nothing but its size.",
        show_default="0.75",
        rich_help_panel=MODEL,
    ),
]
Label: TypeAlias = Annotated[
    int | None, typer.Option("--class", help="Number of the class (class models).", rich_help_panel=MODEL)
]
Tokens: TypeAlias = Annotated[
    str | None, typer.Option(metavar="N,N,…", help="Tokens of the layout (layout models).", rich_help_panel=MODEL)
]
Eta: TypeAlias = Annotated[
    float | None, typer.Option(help="DDIM's noise, 0 to 1.", show_default="the bundle's", rich_help_panel=MODEL)
]
Spacing: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="How steps lie in time, e.g. leading or trailing.", show_default="the bundle's", rich_help_panel=MODEL
    ),
]
Official: TypeAlias = Annotated[
    bool,
    typer.Option("--official", help="Do as the authors' scripts do where diffusers differs.", rich_help_panel=MODEL),
]

Severity: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Steps of degradation, 0 to the bundle's T.", show_default="T", rich_help_panel=MODEL),
]
Algorithm: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, max=2, help="1 or 2 of Cold Diffusion.", show_default="the bundle's", rich_help_panel=MODEL),
]
Second: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="The picture that another one turns into (animorphosis).", rich_help_panel=MODEL),
]

BundleBackend: TypeAlias = Annotated[
    BackendName, typer.Option("--backend", help="Library that runs the networks.", rich_help_panel=RUN)
]
GradientBackend: TypeAlias = Annotated[
    Literal["auto", "openvino", "onnxruntime", "torch", "tensorrt", "tensorrt_rtx", "onnxruntime_cuda"],
    typer.Option(
        "--backend",
        help="Library that runs the networks; torch: gradients by autograd, along a direction only.",
        rich_help_panel=RUN,
    ),
]
RunPrecision: TypeAlias = Annotated[
    PrecisionName | None,
    typer.Option("--precision", help="What to compute in.", show_default="the fastest here", rich_help_panel=RUN),
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Threads to use.", show_default="one a core", rich_help_panel=RUN)
]
BatchSize: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Most pictures to make at once, 1 or more.", show_default="by their size", rich_help_panel=RUN),
]
Tile: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Side of a tile in latents, 0 for none.",
        show_default="only where a picture is too large",
        rich_help_panel=RUN,
    ),
]
Fused: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--fused/--no-fused",
        help="Each step in one network call, or UNet, guidance and update one by one.",
        show_default="fused where the bundle has the network",
        rich_help_panel=RUN,
    ),
]

Output: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        callback=check_picture,
        help="Picture to write; of several, their number is added to the name.",
        rich_help_panel=OUT,
    ),
]
SaveStages: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        callback=check_picture,
        help="Picture to write with what the network took the result for at each step.",
        rich_help_panel=OUT,
    ),
]
Metrics: TypeAlias = Annotated[
    bool, typer.Option("--metrics", help="Print the time of each stage.", rich_help_panel=OUT)
]
