"""Markdown tables, for the pages of results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["table"]


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a section with one table."""
    cells = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    lines = [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in cells), ""]
