"""``sfumato verify``: hashes, and every network on every backend against its stored outputs."""

from __future__ import annotations

import typer

from ..calibration.parity import BundleReport, NetworkReport, verify_bundle
from ..engines.bundle import Bundle
from ..engines.engine import Backend
from ..errors import BundleError
from . import console
from .options import BundleBackend, BundlePath, Json, RunPrecision, Threads

__all__ = ["command"]


def command(
    bundle: BundlePath,
    backend: BundleBackend = "auto",
    precision: RunPrecision = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Check every file's SHA-256, then run every network and compare it with what torch gave at export.

    Runs on every backend that is installed, or on the one named. Exit status 1 if a file was altered, or a network
    deviates by more than the manifest allows, or cannot be checked.
    """
    try:
        opened = Bundle.open(bundle)
    except BundleError as error:
        if as_json:
            failed = {"verified": False, "passed": False, "error": str(error)}
            console.print_json({"bundle": str(bundle), **failed, "networks": list[str]()})
            raise typer.Exit(1) from None
        raise
    backends: list[Backend] | None = None if backend == "auto" else [backend]
    report = verify_bundle(opened, backends, precision=precision, threads=threads)
    if as_json:
        console.print_json(report.to_json())
    else:
        _show(report)
    if not report.passed:
        raise typer.Exit(1)


def _show(report: BundleReport) -> None:
    columns = ["network", "backend", "computed in", ">relative", ">allowed", ">max abs", ">cosine", "result"]
    console.table(f"{report.bundle}: every SHA-256 is right", columns, [_row(row) for row in report.rows])
    for row in report.rows:
        if not row.passed:
            typer.echo(f"{row.network} on {row.backend or 'no backend'}: {row.reason}")
    typer.echo("passed" if report.passed else "FAILED")


def _row(row: NetworkReport) -> list[str]:
    d = row.deviation
    measured = ["", "", ""] if d is None else [f"{d.relative:.2e}", f"{d.max_abs:.2e}", f"{d.cosine:.6f}"]
    allowed = "" if row.tolerance is None else f"{row.tolerance:.2e}"
    return [row.network, row.backend, row.precision or "", measured[0], allowed, measured[1], measured[2], row.status]
