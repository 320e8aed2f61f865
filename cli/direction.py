"""``sfumato direction``: the edit direction between two things, from words, sentences or saved states."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..engines.binding import Array
from ..engines.bundle import Bundle
from ..engines.storage import atomic_write
from ..runtime.direction import read_embedding
from ..runtime.endpoint import Endpoint
from ..runtime.sentences import from_grammar, read_sentences
from ..runtime.systems.pix2pix_open import open_texts, read_settings
from . import console
from .options import BundleBackend, BundlePath, RunPrecision, Threads

__all__ = ["command"]

SENTENCES = "Where sentences come from"
KEY = "SFUMATO_ENDPOINT_KEY"
"""Environment variable with the endpoint's key: on a command line it would be seen by all."""


def command(
    bundle: BundlePath,
    source: Annotated[
        Path | None,
        typer.Option(help="Sentences about what is in the picture, one a line; or a .pt of the authors' code."),
    ] = None,
    target: Annotated[Path | None, typer.Option(help="Sentences about what it should become; or a .pt.")] = None,
    source_word: Annotated[str | None, typer.Option(help="A word to make sentences of, e.g. cat.")] = None,
    target_word: Annotated[str | None, typer.Option(help="The other word, e.g. dog.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write, .npz.", show_default="direction.npz")
    ] = Path("direction.npz"),
    sentences: Annotated[
        int | None,
        typer.Option(min=1, help="Sentences for each word.", show_default="the bundle's", rich_help_panel=SENTENCES),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(
            help="Sentences with {} or {a} for the word.",
            show_default="the bundle's, or a grammar",
            rich_help_panel=SENTENCES,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"Ask the language model behind an OpenAI-compatible address for them; its key in ${KEY}.",
            show_default="nobody is asked",
            rich_help_panel=SENTENCES,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model there.", rich_help_panel=SENTENCES)] = None,
    save_sentences: Annotated[
        Path | None, typer.Option(help="Folder to write the sentences to.", rich_help_panel=SENTENCES)
    ] = None,
    backend: BundleBackend = "auto",
    precision: RunPrecision = None,
    threads: Threads = None,
) -> None:
    """Average the text states of two lists of sentences, and write their difference for `sfumato edit --direction`."""
    _check_usage((source, source_word), (target, target_word), endpoint, model)
    if output.is_dir() or output == save_sentences:
        raise typer.BadParameter(f"{output} is a folder; name a file for the direction, as in cat2dog.npz")
    if output.suffix != ".npz":
        raise typer.BadParameter(f"{output} has another suffix than .npz; use it, as in cat2dog.npz")
    opened = Bundle.open(bundle)
    settings = read_settings(opened)
    forms = settings.templates if templates is None else tuple(read_sentences(templates))
    count = sentences or settings.sentences
    service = None if endpoint is None else Endpoint(endpoint, model or "", os.environ.get(KEY, ""))
    sides: list[Sequence[str] | Array] = []
    labels: list[str] = []
    for file, word in ((source, source_word), (target, target_word)):
        labels.append(word or (file.stem if file is not None else ""))
        if file is not None:
            sides.append(read_embedding(file) if file.suffix in (".pt", ".pth") else read_sentences(file))
        elif service is not None:
            sides.append(service.sentences(word or "", count))
        else:
            sides.append(from_grammar(word or "", count, templates=forms))
    if save_sentences is not None:
        _save(save_sentences, labels, sides)
    with open_texts(opened, backend, precision, threads) as texts, console.progress("sentences") as show:
        direction = texts.direction(sides[0], sides[1], labels=(labels[0], labels[1]), on_progress=show)
    direction.save(output)
    tokens, width = direction.delta.shape[1:]
    counts = " and ".join(str(n) for n in direction.sentences)
    typer.echo(f"wrote {output}: {direction.name}, {counts} sentences, {tokens} tokens of width {width}")


def _check_usage(
    source: tuple[Path | None, str | None],
    target: tuple[Path | None, str | None],
    endpoint: str | None,
    model: str | None,
) -> None:
    for name, (file, word) in (("source", source), ("target", target)):
        if (file is None) == (word is None):
            raise typer.BadParameter(f"give --{name} FILE or --{name}-word WORD, one of them")
    if (endpoint is None) != (model is None):
        raise typer.BadParameter("--endpoint and --model go together; give both or neither")


def _save(folder: Path, labels: Sequence[str], sides: Sequence[Sequence[str] | Array]) -> None:
    """Write the sentences of both sides, so that they can be read, corrected and used again."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, label, lines in zip(("source", "target"), labels, sides, strict=True):
        name = "_".join("".join(c if c.isalnum() else " " for c in label).split())
        if not isinstance(lines, (list, tuple)):
            continue
        path = folder / f"{side}_{name}.txt"
        atomic_write(path, ("\n".join(lines) + "\n").encode())
        typer.echo(f"wrote {path}")
