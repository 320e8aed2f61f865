"""Running a system from the command: open, make with a progress bar, write pictures, stages and metrics."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from .. import load
from ..engines.binding import Array
from ..engines.engine import Backend
from ..errors import ParameterError
from ..runtime import image as pictures
from ..runtime.systems.base import Edit, Progress, SfumatoWarning, System
from ..runtime.systems.latent_run import RunOptions
from ..runtime.systems.timings import Stage
from . import console
from .options import PrecisionName

__all__ = ["Options", "Stages", "given", "make", "numbered", "opened", "show_metrics"]

SHOWN = 16
"""Most steps that a grid of stages shows."""


@dataclass(frozen=True)
class Options:
    """How a system is run and what is written, for `make`."""

    bundle: Path
    backend: Backend
    precision: PrecisionName | None
    threads: int | None
    output: Path
    save_stages: Path | None
    metrics: bool
    sheet: Path | None = None
    quiet: bool = False
    system: str | None = None

    def check_outputs(self, pictures: int) -> None:
        """Refuse two results of one name, before any is made: the later would be written over the earlier."""
        named = {"--save-stages": self.save_stages, "--sheet": self.sheet}
        taken = {path.resolve(): "--output" for path in numbered(self.output, pictures)}
        for option, path in named.items():
            if path is not None and (other := taken.setdefault(path.resolve(), option)) != option:
                raise typer.BadParameter(f"{other} and {option} both write {path}; give one of them another name")


@dataclass
class Stages:
    """The first picture as predicted at up to `SHOWN` evenly spaced steps, the last one among them."""

    images: list[Array] = field(default_factory=list[Array])
    captions: list[str] = field(default_factory=list[str])

    def __call__(self, step: Progress) -> None:
        """Keep the prediction of this step if it is among those shown."""
        if step.images.start:
            return
        calls = step.calls or step.total
        if (calls - 1 - step.index) % -(-calls // SHOWN) == 0:
            self.images.append(step.decoder(step.x0[:1])[0].copy())
            self.captions.append(f"t = {step.t:g}")

    def write(self, path: Path) -> None:
        """Write the grid."""
        captions = self.captions if min(image.shape[1] for image in self.images) >= 48 else None
        pictures.write(path, pictures.contact_sheet(self.images, captions=captions))


def given(**options: Any) -> dict[str, Any]:
    """The options that were given; None leaves the choice to the bundle."""
    return {name: value for name, value in options.items() if value is not None}


@contextlib.contextmanager
def opened(options: Options) -> Generator[System]:
    """The system in the bundle, closed at the end. Its warnings are shown by `make`, from its results."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SfumatoWarning)
        with load(
            options.bundle,
            backend=options.backend,
            precision=options.precision,
            threads=options.threads,
            system=options.system,
        ) as system:
            yield system


def make(options: Options, verb: str, *arguments: Any, **named: Any) -> Sequence[Edit]:
    """Call a verb of the system and write what it made.

    Arguments:
        options: Where from, how, and where to.
        verb: Name of a method of `System`.
        arguments: Passed on.
        named: Passed on.

    Returns:
        What it made.

    Raises:
        ParameterError: The verb of this system takes no such option.
        BadParameter: Two results would have one name.
    """
    options.check_outputs(named.get("num_images", 1))
    stages = Stages()
    say: Callable[[str], None] = (lambda text: None) if options.quiet else typer.echo
    with opened(options) as system, console.progress(verb) as show:

        def on_step(step: Progress) -> None:
            show(step.index + 1, step.total, step.stage or verb)
            if options.save_stages is not None:
                stages(step)

        _check_options(system, verb, arguments, named)
        edits: Sequence[Edit] = getattr(system, verb)(*arguments, on_step=on_step, **named)
    for warning in dict.fromkeys(text for edit in edits for text in edit.warnings):
        typer.echo(f"sfumato: note: {warning}", err=True)
    for path, edit in zip(numbered(options.output, len(edits)), edits, strict=True):
        edit.save(path)
        say(f"wrote {path}")
    if options.save_stages is not None and stages.images:
        stages.write(options.save_stages)
        say(f"wrote {options.save_stages}")
    if options.metrics and not options.quiet:
        show_metrics(edits[0].timings)
    return edits


def _check_options(system: System, verb: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuse what the verb of this system does not take; a verb that the system does not have refuses itself."""
    signature = inspect.signature(getattr(system, verb))
    known = set(signature.parameters)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        known |= getattr(system, "options", RunOptions).__annotations__.keys()
    places = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if verb not in system.verbs:  # with what it takes alone: a TypeError would come before its own sentence
        getattr(system, verb)(*arguments[:places], **{name: named[name] for name in named if name in known})
    refused = [f"--{name.replace('_', '-')}" for name in named if name not in known]
    if len(arguments) > places and inspect.Parameter.VAR_POSITIONAL not in kinds:
        refused.insert(0, "prompt")  # comes last, and is all that one system takes and another does not
    if refused:
        kind = getattr(system, "kind", f"a bundle of {system.manifest.system}")
        raise ParameterError(f"{verb} takes no {refused[0]} with {kind}; leave it out")


def numbered(path: Path, count: int) -> list[Path]:
    """ "a.png" for one picture, "a-1.png", "a-2.png", … for several."""
    if count == 1:
        return [path]
    width = len(str(count))
    return [path.with_name(f"{path.stem}-{index:0{width}}{path.suffix}") for index in range(1, count + 1)]


def show_metrics(timings: Mapping[str, Stage]) -> None:
    """A table of the stages, in milliseconds."""
    whole = timings["total"]["total"] if "total" in timings else 0.0
    rows = [
        [
            name,
            str(stage["calls"]),
            f"{1e3 * stage['mean']:.2f}",
            f"{1e3 * stage['std']:.2f}",
            f"{1e3 * stage['total']:.1f}",
            f"{100 * stage['total'] / whole:.1f} %" if whole else "",
        ]
        for name, stage in timings.items()
    ]
    console.table("stages", ["stage", ">calls", ">mean ms", ">std ms", ">total ms", ">share"], rows)
