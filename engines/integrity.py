"""Integrity: the files of a bundle are the listed ones, unaltered, and lie inside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from ..errors import IntegrityError
from .manifest import MANIFEST_NAME, Manifest
from .storage import sha256_file

__all__ = ["PLANS", "Stamp", "check_tree", "inside", "stamps"]

Stamp: TypeAlias = "tuple[int, int]"
"""Length in bytes and time of the last change in nanoseconds: what tells that a file was written again."""

PLANS = "plans"
"""The one folder whose files are not listed: plans built on the device, outside the bundle's hashes."""


def inside(root: Path, relative: str) -> Path:
    """The regular file `relative` of the bundle at `root`, once it is known to lie inside.

    Raises:
        IntegrityError: It is missing, is no regular file, or a link leads out of the bundle.
    """
    path = root / relative
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except PermissionError as error:
        raise IntegrityError(f"{root}: {relative!r} may not be read; change its permissions") from error
    except (OSError, RuntimeError) as error:
        reason = "a broken link" if path.is_symlink() else "missing"
        raise IntegrityError(f"{root}: {relative!r} is {reason}; copy the bundle again") from error
    if not real.is_relative_to(root.resolve()):
        raise IntegrityError(f"{root}: {relative!r} is a link out of the bundle, to {real}; copy the file in")
    if not stat.S_ISREG(mode):
        raise IntegrityError(f"{root}: {relative!r} is not a regular file; copy the bundle again")
    return path


def _found(root: Path) -> Iterator[str]:
    """Relative paths of everything but folders, without the manifest, plans and dot files at any depth."""
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        top = here == root
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [n for n in folders if n not in links and not n.startswith(".") and not (top and n == PLANS)]
        for name in (*names, *links):
            if not name.startswith(".") and not (top and name in (MANIFEST_NAME, PLANS)):
                yield (here / name).relative_to(root).as_posix()


def stamps(root: Path, manifest: Manifest) -> dict[str, Stamp]:
    """The stamp of every listed file."""
    found: dict[str, Stamp] = {}
    for relative in manifest.files:
        state = inside(root, relative).stat()
        found[relative] = state.st_size, state.st_mtime_ns
    return found


def check_tree(root: Path, manifest: Manifest, *, hashes: bool) -> None:
    """Hold the folder `root` against the files that `manifest` lists.

    Arguments:
        root: The bundle.
        manifest: Its manifest.
        hashes: Also read every file and compare its SHA-256; without it only presence, place and length.

    Raises:
        IntegrityError: A file is missing, unlisted, of another length, altered, or outside the bundle.
    """
    if (root / PLANS).is_symlink() or (root / MANIFEST_NAME).is_symlink():
        raise IntegrityError(f"{root}: {PLANS}/ and {MANIFEST_NAME} must not be links; copy them in")
    paths: dict[str, Path] = {}
    for relative, artifact in manifest.files.items():
        path = paths[relative] = inside(root, relative)
        length = path.stat().st_size
        if length != artifact.bytes:
            kind = "truncated" if length < artifact.bytes else "altered"
            raise IntegrityError(
                f"{root}: {relative!r} is {kind}: {length} bytes, the manifest says {artifact.bytes}; "
                "copy the bundle again"
            )
    for relative in _found(root):
        if relative not in manifest.files:
            raise IntegrityError(
                f"{root}: {relative!r} is not listed in {MANIFEST_NAME}; move it out "
                f"(only {PLANS}/ may hold other files)"
            )
    if hashes:
        for relative, path in paths.items():
            try:
                digest, _ = sha256_file(path)
            except OSError as error:
                raise IntegrityError(
                    f"{root}: {relative!r} cannot be read ({error.strerror}); change its permissions, or copy the "
                    "bundle again"
                ) from error
            if digest != manifest.files[relative].sha256:
                raise IntegrityError(
                    f"{root}: {relative!r} is altered: its SHA-256 is {digest[:12]}…, "
                    f"the manifest says {manifest.files[relative].sha256[:12]}…; copy the bundle again"
                )
