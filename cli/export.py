"""``sfumato export``: checkpoints to bundles. The only verb that needs torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast, get_args

import typer

from ..engines.bundle import Bundle
from ..errors import ExportError, MissingDependency, ParameterError
from ..runtime.degradations.spec import DegradationSpec
from ..runtime.systems.cold_settings import Generation, Start
from ..runtime.systems.pix2pix_settings import Pix2PixZeroSettings
from . import console
from .options import PrecisionName

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True)

Out: TypeAlias = Annotated[Path, typer.Option(help="Folder of the bundle; an intact bundle there is replaced.")]
Stored: TypeAlias = Annotated[PrecisionName, typer.Option(help="How large weights are stored.")]
License: TypeAlias = Annotated[str, typer.Option("--license", help="Terms of the weights.")]
Config: TypeAlias = Annotated[
    Path | None, typer.Option(help="The model's YAML, if the checkpoint does not say enough.")
]
TokenizerFile: TypeAlias = Annotated[
    Path | None, typer.Option(help="The tokenizer.json of a CompVis checkpoint.", show_default="the one beside it")
]
Name: TypeAlias = Annotated[str, typer.Option(help="Name for people.", show_default="the model's or the folder's")]


@app.callback()
def _root() -> None:
    """Turn a checkpoint into a bundle (needs the extra `export`)."""


@app.command("latent-diffusion")
def latent_diffusion(
    checkpoint: Annotated[
        Path,
        typer.Option(
            help="A .ckpt or .safetensors with CompVis keys, or a folder saved by diffusers; with --step also a bundle."
        ),
    ],
    out: Out,
    config: Config = None,
    precision: Stored = "fp16",
    tokenizer: TokenizerFile = None,
    step: Annotated[
        bool, typer.Option("--step", help="Also the network that takes whole sampling steps: UNet, guidance, update.")
    ] = False,
    name: Name = "",
    terms: License = "",
) -> None:
    """Latent Diffusion and Stable Diffusion: CompVis checkpoints and diffusers folders."""
    _export(
        "latent_diffusion",
        checkpoint,
        out,
        config=config,
        precision=precision,
        tokenizer=tokenizer,
        name=name,
        license=terms,
        step=step,
    )


@app.command("pix2pix-zero")
def pix2pix_zero(
    checkpoint: Annotated[
        Path, typer.Option(help="As of latent-diffusion; or a bundle, to which the networks are added.")
    ],
    out: Out,
    config: Config = None,
    precision: Annotated[PrecisionName, typer.Option(help="How large weights are stored; a bundle's own stays.")] = (
        "fp16"
    ),
    tokenizer: TokenizerFile = None,
    settings: Annotated[
        Path | None,
        typer.Option(help="A pix2pix_zero.json with what an edit takes by default.", show_default="the authors'"),
    ] = None,
    captioner: Annotated[
        Path | None, typer.Option(help="Folder of a BLIP captioner to pack too.", show_default="none")
    ] = None,
    gradient: Annotated[
        Literal["auto", "joint", "recomputed"],
        typer.Option(help="Keep all activations (joint), or less memory and more time (recomputed); auto: by memory."),
    ] = "auto",
    device_memory: Annotated[
        float | None,
        typer.Option(min=0, help="Gigabytes of the device, for auto.", show_default="this machine's"),
    ] = None,
    name: Name = "",
    terms: License = "",
) -> None:
    """A text-to-picture model that also edits along directions: Stable Diffusion, LDM text2img, or a bundle of them."""
    _export(
        "pix2pix_zero",
        checkpoint,
        out,
        config=config,
        precision=precision,
        tokenizer=tokenizer,
        name=name,
        license=terms,
        settings=None if settings is None else _settings(settings),
        captioner=captioner,
        gradient=gradient,
        memory=None if device_memory is None else int(device_memory * 1e9),
    )


def _settings(path: Path) -> Pix2PixZeroSettings:
    try:
        return Pix2PixZeroSettings.from_bytes(path.read_bytes(), str(path))
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}); pass a pix2pix_zero.json") from error


@app.command("cold-diffusion")
def cold_diffusion(
    checkpoint: Annotated[Path, typer.Option(help="The model.pt of the original's code or of training.train_cold.")],
    out: Out,
    degradation: Annotated[
        str | None,
        typer.Option(
            help="What the network undoes: blur, inpaint, fade, resolution, snow, decolor, noise or animorphosis.",
            show_default="what the checkpoint says",
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="Of the degradation, e.g. steps=200; repeat it."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of its pictures in pixels.", show_default="the checkpoint's, or 128")
    ] = None,
    residual: Annotated[
        bool | None, typer.Option("--residual/--plain", help="It predicts the difference to its input, or the picture.")
    ] = None,
    quantised: Annotated[
        bool | None, typer.Option("--quantised/--exact", help="Degraded pictures are cut to 8 bits, or not.")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Take the live weights instead of the averaged ones.")] = False,
    generate_from: Annotated[
        str | None, typer.Option(help="means or thumbnails, of --mixture; the rest generates without being told.")
    ] = None,
    mixture: Annotated[Path | None, typer.Option(help="The file of training.fit_mixture.")] = None,
    side: Annotated[int, typer.Option(min=1, help="Side of the mixture's thumbnails.")] = 1,
    noise: Annotated[float, typer.Option(min=0, help="Noise that breaks the symmetry of generation.")] = 0.002,
    precision: Stored = "fp16",
    notice: Annotated[Path | None, typer.Option(help="Attribution of what it was trained on.")] = None,
    name: Annotated[str, typer.Option(help="Name for people.", show_default="the folder's")] = "",
    terms: License = "",
) -> None:
    """Cold Diffusion: the original's checkpoints and one's own, with their degradation."""
    if parameter and degradation is None:
        raise ExportError("parameters are given without the degradation they are of; pass --degradation too")
    _export(
        "cold_diffusion",
        checkpoint,
        out,
        degradation=None if degradation is None else DegradationSpec.parse(degradation, parameter or ()),
        weights="model" if live else "ema",
        size=size,
        residual=residual,
        quantised=quantised,
        generation=None if generate_from is None else _generation(generate_from, side, noise),
        mixture=mixture,
        precision=precision,
        notice=notice,
        name=name,
        license=terms,
    )


def _generation(start: str, side: int, noise: float) -> Generation:
    if start not in get_args(Start):
        raise ParameterError(f"nothing is generated from {start!r}; use {', '.join(get_args(Start))}")
    return Generation(cast(Start, start), side, noise=noise)


def _export(recipe: str, checkpoint: Path, out: Path, **options: Any) -> None:
    """Run the recipe's export and say what it wrote."""
    bundle: Bundle = _recipe(recipe).export(checkpoint, out, on_progress=_say, **options)
    total = sum(artifact.bytes for artifact in bundle.manifest.files.values())
    typer.echo(f"wrote {bundle.path} ({console.size(total)})")


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _recipe(name: str) -> Any:
    """The recipe's module; what it imports and is not installed becomes `MissingDependency`."""
    try:
        return importlib.import_module(f"...export.recipes.{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("sfumato"):
            raise
        raise MissingDependency(error.name.partition(".")[0], "export", "exporting a checkpoint") from error
