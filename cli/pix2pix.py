"""Edits along a direction (pix2pix-zero): their options, and the sheet that shows what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import typer

from ..engines.binding import Array
from ..runtime import image as pictures
from ..runtime.systems.base import Edit
from .options import OUT, check_picture
from .run import Options, given, make
from .sheet import captioned_sheet

__all__ = [
    "AttentionGuidance",
    "Caption",
    "DirectionFile",
    "EditMultiplier",
    "InversionName",
    "LowMemory",
    "Regularize",
    "SharedLatent",
    "Sheet",
    "SourceWord",
    "TargetWord",
    "difference",
    "lead",
    "leads",
    "sheet_of",
]

PANEL = "Edits along a direction (pix2pix-zero)"

SourceWord: TypeAlias = Annotated[
    str | None, typer.Option(help="What is in the picture, e.g. 'red apple'.", rich_help_panel=PANEL)
]
TargetWord: TypeAlias = Annotated[str | None, typer.Option(help="What it should become.", rich_help_panel=PANEL)]
DirectionFile: TypeAlias = Annotated[
    Path | None,
    typer.Option("--direction", help="What `sfumato direction` wrote, in place of words.", rich_help_panel=PANEL),
]
Caption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="Along a direction: what the picture shows. Without words or --direction: the same as PROMPT, what it is "
        "to become.",
        show_default="along a direction by a captioner, if packed",
        rich_help_panel=PANEL,
    ),
]
AttentionGuidance: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="How firmly attention keeps to the picture's; 0 leaves it free.",
        show_default="the bundle's",
        rich_help_panel=PANEL,
    ),
]
EditMultiplier: TypeAlias = Annotated[
    float | None, typer.Option(help="Factor on the direction.", show_default="1", rich_help_panel=PANEL)
]
InversionName: TypeAlias = Annotated[
    Literal["official", "diffusers", "plain"] | None,
    typer.Option("--inversion", help="Which steps lead up.", show_default="the bundle's", rich_help_panel=PANEL),
]
Regularize: TypeAlias = Annotated[
    bool, typer.Option("--regularize/--no-regularize", help="Make predicted noise white.", rich_help_panel=PANEL)
]
SharedLatent: TypeAlias = Annotated[
    bool, typer.Option("--shared-latent", help="Optimise one latent, not a copy a branch.", rich_help_panel=PANEL)
]
LowMemory: TypeAlias = Annotated[
    bool, typer.Option("--low-memory", help="One row and one network at a time; a tenth slower.", rich_help_panel=PANEL)
]
Sheet: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        callback=check_picture,
        help="Picture to write with original, reconstruction, edit and difference side by side.",
        rich_help_panel=OUT,
    ),
]


def leads(**options: Any) -> bool:
    """Whether an edit is along a direction; wrong usage if options of such a one are given without one."""
    if any(options.pop(name) is not None for name in ("source_word", "target_word", "direction")):
        return True
    stray = next((name for name, value in options.items() if value is not None and value is not False), None)
    if stray is not None:
        raise typer.BadParameter(
            f"--{stray.replace('_', '-')} is for edits along a direction; "
            "give --source-word and --target-word, or --direction"
        )
    return False


def lead(
    options: Options,
    verb: str,
    *arguments: Any,
    shared: bool,
    apart: bool,
    **named: Any,
) -> None:
    """Edit along a direction and write the picture and its sheet."""
    edits = make(
        replace(options, system="pix2pix-zero"),
        verb,
        *arguments,
        **given(kept="shared" if shared else None, apart=apart or None, **named),
    )
    if options.sheet is not None:
        pictures.write(options.sheet, sheet_of(edits))
        typer.echo(f"wrote {options.sheet}")


def sheet_of(edits: Sequence[Edit]) -> Array:
    """Original (of a picture), reconstruction, edit and their difference, a row for each edit; uint8 (H, W, 3)."""
    images: list[Array] = []
    captions: list[str] = []
    for edit in edits:
        assert edit.reconstruction is not None
        row = {"reconstruction": edit.reconstruction, "edit": edit.image}
        if edit.original is not None:
            row = {"original": edit.original, **row}
        else:
            row = {"without the edit": edit.reconstruction, "edit": edit.image}
        row["difference"] = difference(edit.reconstruction, edit.image)
        images += row.values()
        captions += row
    return captioned_sheet(images, captions, columns=len(images) // len(edits))


def difference(one: Array, two: Array) -> Array:
    """|one - two| of two pictures uint8 (H, W, 3): black where they are equal."""
    return np.asarray(np.abs(one.astype(np.int16) - two).astype(np.uint8))
