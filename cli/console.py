"""What the command shows: tables on stdout, a progress bar on a terminal's stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import typer

__all__ = ["print_json", "progress", "size", "table"]


def print_json(tree: Mapping[str, Any]) -> None:
    """One JSON object on stdout, indented."""
    typer.echo(json.dumps(tree, indent=2, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; columns named with a leading ">" are set to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Without a terminal rich cuts at 80 columns, which would lose what is piped to a file.
    console = Console(width=None if sys.stdout.isatty() else 160)
    grid = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=any(columns))
    for column in columns:
        grid.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(cell.replace("[", "\\[") for cell in row))
    console.print(grid)


@contextlib.contextmanager
def progress(label: str) -> Generator[Callable[..., None]]:
    """A progress bar on stderr, if that is a terminal; the function takes (steps done, steps in all[, label])."""
    if not sys.stderr.isatty():

        def nothing(done: int, total: int, now: str = label) -> None:
            pass

        yield nothing
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)

        def show(done: int, total: int, now: str = label) -> None:
            bar.update(task, completed=done, total=total, description=now)

        yield show


def size(count: int) -> str:
    """Bytes as "12.3 MB" (decimal units)."""
    number, units = float(count), ["B", "kB", "MB", "GB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.0f} {units[0]}" if units[0] == "B" else f"{number:.1f} {units[0]}"
