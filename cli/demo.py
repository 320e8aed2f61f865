"""``sfumato demo``: pictures from prompts, a contact sheet and a timing table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..engines.storage import atomic_write
from ..engines.target import detect
from ..errors import ImageError, ParameterError
from ..runtime import image as pictures
from ..runtime.systems.base import Edit, Progress
from . import console
from .options import BundleBackend, BundlePath, RunPrecision, Steps, Threads
from .run import Options, given, opened
from .sheet import captioned_sheet

__all__ = ["PROMPTS", "command"]

PROMPTS = (
    "red apple",
    "mushroom",
    "rocket on a light blue background",
    "hot air balloon",
    "sunflower",
    "hamburger on a yellow background",
    "owl",
    "octopus, flat",
)
"""What the demonstration asks for."""


def command(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(help="Folder to write to; it is made.")] = Path("out/demo"),
    seed: Annotated[int, typer.Option(help="Seed of every picture.")] = 1,
    steps: Steps = None,
    backend: BundleBackend = "auto",
    precision: RunPrecision = None,
    threads: Threads = None,
) -> None:
    """Make eight pictures from prompts, a contact sheet and a timing table."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{out}: cannot be made ({error.strerror}); choose a folder you may write to") from error
    began = time.perf_counter()
    options = Options(bundle, backend, precision, threads, out, None, False)
    edits: list[Edit] = []
    seconds: list[float] = []
    with opened(options) as system:
        if "generate" not in system.verbs or system.manifest.settings.get("task") != "text":
            raise ParameterError(f"{bundle}: has no text-to-picture model; run the demo on one that has")
        loaded = time.perf_counter() - began
        with console.progress("demo") as show:
            for index, prompt in enumerate(PROMPTS):

                def on_step(step: Progress, done: int = index) -> None:
                    show(done * step.total + step.index + 1, len(PROMPTS) * step.total)

                start = time.perf_counter()
                edits += system.generate(prompt, **given(seed=seed, steps=steps, on_step=on_step))
                seconds.append(time.perf_counter() - start)
    for prompt, edit in zip(PROMPTS, edits, strict=True):
        edit.save(out / f"{_slug(prompt)}.png")
    pictures.write(out / "sheet.png", captioned_sheet([edit.image for edit in edits], PROMPTS, columns=4))
    report = _report(bundle, loaded, seconds, edits)
    atomic_write(out / "timings.md", report.encode())
    typer.echo(report)
    typer.echo(f"wrote {out}: {len(edits)} pictures, sheet.png, timings.md; {time.perf_counter() - began:.1f} s in all")


def _slug(prompt: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in prompt).split())


def _report(bundle: Path, loaded: float, seconds: Sequence[float], edits: Sequence[Edit]) -> str:
    """The timing table, in Markdown."""
    processor = detect()
    lines = [
        f"# {bundle.name} on {processor.model}, {processor.cores} cores",
        "",
        f"Opening the bundle took {loaded:.2f} s. "
        "The first picture includes compiling the networks, or reading them from the cache.",
        "",
        "| prompt | seconds |",
        "|---|---:|",
        *(f"| {prompt} | {value:.2f} |" for prompt, value in zip(PROMPTS, seconds, strict=True)),
        "",
        "Stages of the last picture:",
        "",
        "| stage | calls | mean ms | total ms |",
        "|---|---:|---:|---:|",
    ]
    for name, stage in edits[-1].timings.items():
        lines.append(f"| {name} | {stage['calls']} | {1e3 * stage['mean']:.2f} | {1e3 * stage['total']:.1f} |")
    return "\n".join(lines) + "\n"
