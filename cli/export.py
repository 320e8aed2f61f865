"""``sfumato export``: checkpoints to bundles. The only verb that needs torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import MissingDependency
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
