"""``sfumato build``: plans for NVIDIA GPUs, compiled from a bundle into its ``plans/``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ..engines.build import build_plan
from ..engines.build_options import BuildOptions, HardwareLevel, parse_range
from ..engines.build_target import parse_target
from ..engines.bundle import Bundle
from ..engines.plan import Plan
from . import console
from .options import BundlePath, Json, PrecisionName

__all__ = ["command", "parse_bytes"]

WHAT, HOW = "What the plans are for", "How they are built"

TargetName: TypeAlias = Annotated[
    str,
    typer.Option(
        "--target",
        help="rtx:sm86+sm89 for those GPUs, rtx for RTX 30, 40 and 50, tensorrt for the GPU at hand, or auto.",
        rich_help_panel=WHAT,
    ),
]


def parse_bytes(text: str | None) -> int | None:
    """ "512M" or "2G" -> bytes (binary units); wrong usage if it is neither."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip().upper())
    if match is None:
        raise typer.BadParameter(f"{text!r}: write a number of bytes with K, M or G, as in 2G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def command(
    bundle: BundlePath,
    target: TargetName = "auto",
    network: Annotated[
        list[str] | None, typer.Option(help="Only this network; may be repeated.", rich_help_panel=WHAT)
    ] = None,
    precision: Annotated[
        PrecisionName | None,
        typer.Option(help="What products compute in.", show_default="fp16 where allowed", rich_help_panel=WHAT),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="DIM=MIN:OPT:MAX",
            help="Extents of a dimension, as in height=32:64:128 or batch=2; may be repeated.",
            show_default="the bundle's",
            rich_help_panel=WHAT,
        ),
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(help="Scratch memory for kernels, as in 2G.", rich_help_panel=HOW)
    ] = None,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Let weights stay in host memory.", rich_help_panel=HOW)
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="For later versions too (TensorRT).", rich_help_panel=HOW)
    ] = False,
    hardware: Annotated[
        HardwareLevel, typer.Option(help="For other GPUs too (TensorRT).", rich_help_panel=HOW)
    ] = "none",
    effort: Annotated[
        int | None, typer.Option(min=0, max=5, help="The builder's optimisation level.", rich_help_panel=HOW)
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Let weights be replaced where the plan runs.", rich_help_panel=HOW)
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Build what is there already.", rich_help_panel=HOW)] = False,
    as_json: Json = False,
) -> None:
    """Compile a bundle's networks into plans, one after another.

    Plans lie under plans/ of the bundle. TensorRT for RTX builds them on a machine without a GPU; TensorRT builds for
    the GPU at hand. A plan that is there already is found and checked. Ctrl-C leaves nothing half-written.
    """
    ranges = dict(parse_range(text) for text in shapes or [])
    options = BuildOptions(
        precision=precision,
        ranges=ranges,
        workspace=parse_bytes(workspace),
        weight_streaming=weight_streaming,
        version_compatible=version_compatible,
        hardware=hardware,
        effort=effort,
        refit=refit,
    )
    chosen = parse_target(target)
    opened = Bundle.open(bundle)
    names = network or list(opened.manifest.networks)
    specs = [opened.network(name) for name in names]  # an unknown name is refused before the first minute is spent
    known = {name for spec in specs for name in spec.dimensions}
    for name in ranges:
        if name not in known:
            raise typer.BadParameter(f"--range {name}: the networks have {', '.join(sorted(known))}")
    plans = dict[str, Plan]()
    for index, name in enumerate(names):
        with console.progress(f"{name} ({index + 1} of {len(names)})") as show:
            plans[name] = build_plan(
                opened,
                name,
                chosen,
                options,
                on_progress=_labelled(show, f"{name} ({index + 1} of {len(names)})"),
                again=again,
            )
        if not as_json:
            typer.echo(_line(name, plans[name], bundle))
    if as_json:
        console.print_json({"bundle": str(bundle), "plans": [_tree(plan) for plan in plans.values()]})


def _labelled(show: Any, label: str) -> Any:
    """The bar names the network and not the builder's phases, which change with its version."""

    def told(done: int, total: int, phase: str) -> None:
        show(done, total, label)

    return told


def _line(name: str, plan: Plan, bundle: Path) -> str:
    path = plan.path.relative_to(bundle) if plan.path.is_relative_to(bundle) else plan.path
    what = f"{name}: {path}, {console.size(plan.bytes)}, {plan.key['precision']}"
    if not plan.fresh:
        return f"{what}, was there"
    peak = plan.built["peak_bytes"]
    memory = "" if peak is None else f", peak {console.size(peak)}"
    return f"{what}, {plan.built['seconds']} s{memory}"


def _tree(plan: Plan) -> dict[str, Any]:
    return {
        "path": str(plan.path),
        "bytes": plan.bytes,
        "sha256": plan.sha256,
        "fresh": plan.fresh,
        "key": dict(plan.key),
        "built": dict(plan.built),
    }
