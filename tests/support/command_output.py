"""What the command printed, for tests."""

from __future__ import annotations

from typer.testing import Result


def words(result: Result) -> str:
    """Output without the frames and line breaks that rich puts in."""
    return " ".join("".join(c for c in result.output if c not in "│╭╮╰╯─━").split())
