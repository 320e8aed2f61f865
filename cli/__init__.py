"""The command `sfumato`: each verb stands in its own file, which is imported when it is called."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command; ends in `SystemExit` with status 0, 1 (failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    try:
        from .app import app

        app(prog_name="sfumato")
    except KeyboardInterrupt:  # while modules are imported; later Typer sees it
        sys.exit(130)
