"""The group of verbs: lazy imports, exit statuses, and errors as one message."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import SfumatoError
from .wording import as_options

__all__ = ["VERBS", "Verbs", "app"]

VERBS: Mapping[str, str] = {
    "generate": "generate",
    "edit": "edit",
    "inpaint": "inpaint",
    "upscale": "upscale",
    "restore": "restore",
    "direction": "direction",
    "info": "info",
    "verify": "verify",
    "doctor": "doctor",
    "export": "export",
    "build": "build",
    "plan-memory": "plan_memory",
    "demo": "demo",
}
"""Every verb with its module here, in the order of the help. A module holds a function `command` or a Typer `app`."""


class Verbs(TyperGroup):
    """A group whose verbs are imported on use, and whose failures are one line on stderr and exit status 1.

    Typer itself ends with 2 on wrong usage and with 130 on Ctrl-C.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f".{VERBS[cmd_name]}", __package__)
        sub: typer.Typer | None = getattr(module, "app", None)
        if sub is None:
            sub = typer.Typer(add_completion=False)
            sub.command(cmd_name)(module.command)
        command = typer.main.get_command(sub)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # For "did you mean": Typer looks for similar names among those that are loaded.
        self.commands = {name: self.get_command(ctx, name) for name in VERBS} if args[0] not in VERBS else {}
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **options)
        except Exception as error:
            if os.environ.get("SFUMATO_DEBUG", "") not in ("", "0"):
                raise
            sys.stderr.write(f"sfumato: {describe(error)}\n")
            sys.exit(1)


def describe(error: Exception) -> str:
    """An error as one message: what sfumato or the system says of it, or a request to report it."""
    if isinstance(error, SfumatoError):
        return as_options(str(error))
    if isinstance(error, MemoryError):
        return "out of memory; choose a smaller --size or --num-images"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {error}; run it again with SFUMATO_DEBUG=1 to see where"


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sfumato {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Diffusion image editing from a bundle of compiled networks, without PyTorch."""
