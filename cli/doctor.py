"""``sfumato doctor``: what is installed, which backends work, why not, and the command that mends it."""

from __future__ import annotations

from dataclasses import asdict

import typer

from ..engines.doctor import Environment, Finding, environment
from ..engines.doctor_rules import diagnose
from ..engines.doctor_states import BackendState, states
from . import console
from .options import Json

__all__ = ["command"]


def command(as_json: Json = False) -> None:
    """Say what is installed, which backends work and why not, and print the command that mends it.

    Looks at files, package metadata and the driver; imports none of the libraries, since a wrong pair of them can end
    the process. Exit status 1 if nothing here can run a network.
    """
    env = environment()
    backends, findings = states(env), diagnose(env)
    if as_json:
        tree = {"environment": asdict(env), "backends": [asdict(b) for b in backends]}
        console.print_json({**tree, "findings": [asdict(f) for f in findings]})
    else:
        _show(env, backends, findings)
    if not any(backend.state == "ready" for backend in backends):
        raise typer.Exit(1)


def _show(env: Environment, backends: list[BackendState], findings: list[Finding]) -> None:
    nvidia = env.nvidia
    gpus = ", ".join(f"{gpu.name} ({gpu.sm})" for gpu in env.gpus)
    rows = {
        "python": f"{'.'.join(map(str, env.python))} on {env.system}, {env.cpu.machine}",
        "processor": f"{env.cpu.model}, {env.cpu.cores} threads",
        "its extensions": " ".join(env.cpu.flags) or "none that matter",
        "GPUs": gpus or "none",
        "driver": nvidia.driver or "none",
        **({"Jetson Linux": nvidia.jetson} if nvidia.jetson is not None else {}),
        **dict(env.packages),
    }
    console.table("this machine", ["", ""], list(rows.items()))
    states_ = [[b.name, b.version or "", b.state, b.reason] for b in backends]
    console.table("backends", ["backend", "version", "state", "why"], states_)
    for finding in findings:
        typer.echo(f"{finding.level}: {finding.subject}: {finding.problem}")
        if finding.mend:
            typer.echo(f"  mend it: {finding.mend}")
    mended = {finding.mend for finding in findings}
    for backend in backends:
        if backend.mend and backend.mend not in mended:
            typer.echo(f"{backend.name} is {backend.state}: {backend.mend}")
