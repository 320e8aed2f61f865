"""``sfumato export``: checkpoints to bundles. The only verb that needs torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any, cast, get_args

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


@app.callback()
def _root() -> None:
    """Turn a checkpoint into a bundle (needs the extra `export`)."""


@app.command("latent-diffusion")
def latent_diffusion(
    checkpoint: Annotated[
        Path, typer.Option(help="A .ckpt or .safetensors with CompVis keys, or a folder saved by diffusers.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; an intact bundle there is replaced.")],
    config: Annotated[
        Path | None, typer.Option(help="The model's YAML, if the checkpoint does not say enough.")
    ] = None,
    precision: Annotated[PrecisionName, typer.Option(help="How large weights are stored.")] = "fp16",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="The tokenizer.json of a CompVis checkpoint.", show_default="the one beside it"),
    ] = None,
    name: Annotated[str, typer.Option(help="Name for people.", show_default="the model's or the folder's")] = "",
    terms: Annotated[str, typer.Option("--license", help="Terms of the weights.")] = "",
) -> None:
    """Latent Diffusion and Stable Diffusion: CompVis checkpoints and diffusers folders."""
    recipe = _recipe("latent_diffusion")
    bundle = recipe.export(
        checkpoint,
        out,
        config=config,
        precision=precision,
        tokenizer=tokenizer,
        name=name,
        license=terms,
        on_progress=_say,
    )
    _wrote(bundle)


@app.command("pix2pix-zero")
def pix2pix_zero(
    checkpoint: Annotated[
        Path, typer.Option(help="As of latent-diffusion; or a bundle, to which the networks are added.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; an intact bundle there is replaced.")],
    config: Annotated[
        Path | None, typer.Option(help="The model's YAML, if the checkpoint does not say enough.")
    ] = None,
    precision: Annotated[PrecisionName, typer.Option(help="How large weights are stored; a bundle's own stays.")] = (
        "fp16"
    ),
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="The tokenizer.json of a CompVis checkpoint.", show_default="the one beside it"),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(help="A pix2pix_zero.json with what an edit takes by default.", show_default="the authors'"),
    ] = None,
    captioner: Annotated[
        Path | None, typer.Option(help="Folder of a BLIP captioner to pack too.", show_default="none")
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="A gradient that takes less memory and more time.")
    ] = False,
    name: Annotated[str, typer.Option(help="Name for people.", show_default="the model's or the folder's")] = "",
    terms: Annotated[str, typer.Option("--license", help="Terms of the weights.")] = "",
) -> None:
    """A text-to-picture model that also edits along directions: Stable Diffusion, LDM text2img, or a bundle of them."""
    recipe = _recipe("pix2pix_zero")
    bundle = recipe.export(
        checkpoint,
        out,
        config=config,
        precision=precision,
        tokenizer=tokenizer,
        name=name,
        license=terms,
        settings=None if settings is None else _settings(settings),
        captioner=captioner,
        recompute=recompute,
        on_progress=_say,
    )
    _wrote(bundle)


def _settings(path: Path) -> Pix2PixZeroSettings:
    try:
        return Pix2PixZeroSettings.from_bytes(path.read_bytes(), str(path))
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}); pass a pix2pix_zero.json") from error


@app.command("cold-diffusion")
def cold_diffusion(
    checkpoint: Annotated[Path, typer.Option(help="The model.pt of the original's code or of training.train_cold.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; an intact bundle there is replaced.")],
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
    precision: Annotated[PrecisionName, typer.Option(help="How large weights are stored.")] = "fp16",
    notice: Annotated[Path | None, typer.Option(help="Attribution of what it was trained on.")] = None,
    name: Annotated[str, typer.Option(help="Name for people.", show_default="the folder's")] = "",
    terms: Annotated[str, typer.Option("--license", help="Terms of the weights.")] = "",
) -> None:
    """Cold Diffusion: the original's checkpoints and one's own, with their degradation."""
    recipe = _recipe("cold_diffusion")
    if parameter and degradation is None:
        raise ExportError("parameters are given without the degradation they are of; pass --degradation too")
    bundle = recipe.export(
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
        on_progress=_say,
    )
    _wrote(bundle)


def _generation(start: str, side: int, noise: float) -> Generation:
    if start not in get_args(Start):
        raise ParameterError(f"nothing is generated from {start!r}; use {', '.join(get_args(Start))}")
    return Generation(cast(Start, start), side, noise=noise)


def _wrote(bundle: Bundle) -> None:
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
