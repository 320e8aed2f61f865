"""What the scripts of this folder share as commands: help with defaults, outputs made ready, short failures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..engines.storage import refuse
from ..errors import MissingDependency, ParameterError, SfumatoError
from .pictures import SUFFIXES

__all__ = ["outputs", "parser", "run"]


class _Help(argparse.RawDescriptionHelpFormatter):
    """Defaults behind the help, where there is something to say."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default is False:
            return f"{text} (default: off)"
        return text if action.default in (None, [], argparse.SUPPRESS) else f"{text} (default: %(default)s)"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's head and every option with its default."""
    return argparse.ArgumentParser(description=description, formatter_class=_Help)


def outputs(*paths: Path | None, sheet: Path | None = None) -> None:
    """Make the folders of files that will be written, before the work that would be lost without them.

    Arguments:
        paths: Files of any kind.
        sheet: One that is a picture.

    Raises:
        ParameterError: One is a folder, or is named twice, or no picture has the sheet's suffix.
        BundleError: Its folder cannot be made or written to.
    """
    if sheet is not None and sheet.suffix.lower() not in SUFFIXES:
        raise ParameterError(f"{sheet} has no suffix of a picture; use {', '.join(SUFFIXES)}")
    named = [path for path in (*paths, sheet) if path is not None]
    for path in named:
        if path.is_dir():
            raise ParameterError(f"{path} is a folder; pass the name of a file")
        if [other.resolve() for other in named].count(path.resolve()) > 1:
            raise ParameterError(f"{path} is to be written twice; give one of them another name")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                raise PermissionError(None, "permission denied")
        except OSError as error:
            refuse("write it", path, error)


def run(main: Callable[[], int | None]) -> int:
    """The exit status of a script; what a user can mend is one line on stderr and status 1."""
    name = Path(sys.argv[0]).stem
    try:
        return main() or 0
    except (SfumatoError, OSError, FloatingPointError) as error:
        said = str(error)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("", "sfumato"):
            raise
        said = str(MissingDependency(library, "train", name))
    sys.stderr.write(f"{name}: {said}\n")
    return 1
