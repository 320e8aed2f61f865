"""``sfumato plan-memory``: what building and running a bundle will take, and on which devices it fits."""

from __future__ import annotations

from typing import Annotated

import typer

from ..engines.build_options import BuildOptions, parse_range
from ..engines.bundle import Bundle
from ..engines.memory_plan import DEVICES, MemoryPlan, fits, plan_memory, target_kind
from . import console
from .options import BundlePath, Json, PrecisionName

__all__ = ["command"]


def command(
    bundle: BundlePath,
    target: Annotated[
        str, typer.Option("--target", help="cpu (OpenVINO in fp32), rtx:sm89, or sm87 for a Jetson.")
    ] = "cpu",
    precision: Annotated[
        PrecisionName | None, typer.Option(help="What a GPU computes in.", show_default="fp16 where allowed")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--range", metavar="DIM=MIN:OPT:MAX", help="Extents, as for build; the largest count."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the memory that building and running a bundle takes, and say where that fits.

    Adds up weights, and the activations that are alive at once at the largest shapes, which a plan reserves. Nothing is
    built or run.
    """
    kind = target_kind(target)
    options = BuildOptions(precision=precision, ranges=dict(parse_range(text) for text in shapes or []))
    plan = plan_memory(Bundle.open(bundle, verify=False), kind, options)
    if as_json:
        console.print_json(_tree(plan, target))
        return
    built = kind != "cpu"
    rows = [
        [
            n.name,
            ", ".join(f"{name} {extent}" for name, extent in n.at.items()),
            console.size(n.weights),
            console.size(n.activations),
            *([console.size(n.build)] if built else []),
        ]
        for n in plan.networks
    ]
    columns = ["network", "at", ">weights", ">activations", *([">build peak"] if built else [])]
    console.table(f"{bundle} on {target}", columns, rows)
    if built:
        typer.echo(f"building, one network at a time: {console.size(plan.build)} at most")
    typer.echo(f"running, all networks open: {console.size(plan.run)}")
    for size in DEVICES:
        builds, runs = fits(plan, size)
        words = [f"builds: {_word(builds)}"] if built else []
        typer.echo(f"{size} GB: {', '.join([*words, f'runs: {_word(runs)}'])}")


def _word(yes: bool) -> str:
    return "yes" if yes else "no"


def _tree(plan: MemoryPlan, target: str) -> dict[str, object]:
    return {
        "target": target,
        "build_bytes": plan.build,
        "run_bytes": plan.run,
        "networks": [{**n.__dict__, "at": dict(n.at)} for n in plan.networks],
        "fits": {str(size): dict(zip(("build", "run"), fits(plan, size), strict=True)) for size in DEVICES},
    }
