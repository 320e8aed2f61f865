"""``sfumato restore``: pictures as they were before they were blurred, cut, shrunk … (Cold Diffusion)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer

from ..runtime import image as pictures
from ..runtime.systems.cold_result import Quality, Restored
from . import console
from .options import (
    MODEL,
    OUT,
    Algorithm,
    BundleBackend,
    BundlePath,
    Json,
    Metrics,
    Official,
    Output,
    PictureSize,
    RunPrecision,
    SaveStages,
    Second,
    Seed,
    Severity,
    Threads,
    check_picture,
    parse_size,
)
from .run import Options, given, make

__all__ = ["command"]


def command(
    bundle: BundlePath,
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A clean picture, or with --degraded another.")],
    severity: Severity = None,
    algorithm: Algorithm = None,
    degraded: Annotated[
        bool,
        typer.Option("--degraded", help="The picture is degraded already, by --severity.", rich_help_panel=MODEL),
    ] = False,
    original: Annotated[
        Path | None, typer.Option(help="What a degraded picture was, to measure by.", rich_help_panel=MODEL)
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="White may change; holes that lie anywhere come to its middle.", rich_help_panel=MODEL),
    ] = None,
    second: Second = None,
    size: PictureSize = None,
    seed: Seed = 0,
    official: Official = False,
    backend: BundleBackend = "auto",
    precision: RunPrecision = None,
    threads: Threads = None,
    output: Output = Path("out.png"),
    save_stages: SaveStages = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            callback=check_picture,
            help="Picture to write with original, degraded, direct and restored side by side.",
            rich_help_panel=OUT,
        ),
    ] = None,
    metrics: Metrics = False,
    as_json: Json = False,
) -> None:
    """Degrade a picture and restore it, or restore a degraded one; tells PSNR, SSIM and RMSE where it can."""
    made = make(
        Options(bundle, backend, precision, threads, output, save_stages, metrics, sheet=sheet, quiet=as_json),
        "restore",
        picture,
        seed=seed,
        degraded=degraded,
        **given(
            severity=severity,
            algorithm=algorithm,
            original=original,
            mask=mask,
            second=second,
            size=parse_size(size),
            official=official or None,
        ),
    )
    (restored,) = cast("Sequence[Restored]", made)
    if sheet is not None:
        pictures.write(sheet, restored.sheet())
    if as_json:
        timings = {"timings": dict(restored.timings)} if metrics else {}
        console.print_json({"path": str(output), **restored.parameters, "quality": dict(restored.quality), **timings})
        return
    if sheet is not None:
        typer.echo(f"wrote {sheet}")
    if restored.quality:
        rows = [[name, *_row(found)] for name, found in restored.quality.items()]
        console.table("against the original", ["", ">PSNR dB", ">SSIM", ">RMSE"], rows)


def _row(found: Quality) -> list[str]:
    psnr = "equal" if found["psnr"] is None else f"{found['psnr']:.2f}"
    ssim = "" if found["ssim"] is None else f"{found['ssim']:.4f}"
    return [psnr, ssim, f"{found['rmse']:.4f}"]
