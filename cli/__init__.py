"""The command `sfumato`: each verb stands in its own file, which is imported when it is called."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command; ends in `SystemExit` with status 0, 1 (failed), 2 (usage), 130 (Ctrl-C)."""
    from .app import app

    app(prog_name="sfumato")
