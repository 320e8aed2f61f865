"""Files written whole or not at all: hashing, atomic writes, locks and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import NoReturn

from ..errors import BundleError

__all__ = [
    "CHUNK",
    "UNWRITABLE",
    "atomic_write",
    "cache_dir",
    "copy_hashed",
    "locked",
    "refuse",
    "sha256_file",
    "sync_tree",
]

CHUNK = 1 << 20
"""Bytes read, hashed or written at a time."""

UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO})
"""Errors of the place that is written to, whoever was writing."""


def cache_dir() -> Path:
    """The cache folder: ``$SFUMATO_CACHE``, else ``$XDG_CACHE_HOME/sfumato``, else ``~/.cache/sfumato``.

    A user without a home (a container run under any number) gets one in the folder for temporary files.
    """
    own = os.environ.get("SFUMATO_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "sfumato"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"sfumato-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"


def sha256_file(path: Path) -> tuple[str, int]:
    """Hexadecimal SHA-256 and length of a file, read in chunks of `CHUNK`."""
    digest, length = hashlib.sha256(), 0
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            length += count
    return digest.hexdigest(), length


def refuse(action: str, path: Path, error: OSError) -> NoReturn:
    """Raise `BundleError` for an `OSError` while writing, with what to do about a full disk."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            mend = "free space there, or write elsewhere"
        case errno.EFBIG:
            mend = "write to a file system, or under a limit, that takes files of this size"
        case _:
            mend = "choose a folder you may write to"
    raise BundleError(f"{path}: cannot {action} ({error.strerror or error}); {mend}") from error


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data[:CHUNK]) :]


def atomic_write(path: Path | str, *parts: bytes | memoryview) -> None:
    """Write `parts`, one after another, to `path`, so that `path` holds the old or the new bytes but never a part.

    A temporary sibling is written, synced and renamed. A full disk, an error or Ctrl-C leaves nothing behind.

    Raises:
        BundleError: The disk is full or the folder is not writable.
    """
    path = Path(path)
    try:
        # Not mkstemp, whose files only their owner may read.
        name = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        refuse("write it", path, error)
    try:
        try:
            for part in parts:
                _write_all(descriptor, memoryview(part).cast("B"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(name, path)
    except OSError as error:
        os.unlink(name)
        refuse("write it", path, error)
    except BaseException:
        os.unlink(name)
        raise


def copy_hashed(source: Path, target: Path) -> tuple[str, int]:
    """Copy a file in chunks; the SHA-256 and length of what was written. `target` must not exist."""
    digest, length = hashlib.sha256(), 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with source.open("rb", buffering=0) as file:
        descriptor = os.open(target, flags, 0o666)
        try:
            while block := file.read(CHUNK):
                _write_all(descriptor, memoryview(block))
                digest.update(block)
                length += len(block)
        finally:
            os.close(descriptor)
    return digest.hexdigest(), length


def sync_tree(folder: Path) -> None:
    """Ask the system to put every file and folder under `folder` on the disk."""
    for root, _, names in os.walk(folder):
        for path in [*(Path(root) / name for name in names), Path(root)]:
            if os.name == "nt" and path.is_dir():
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path | str) -> Generator[None, None, None]:
    """Hold an exclusive lock that all processes of this machine respect; waits for its holder.

    The lock is on ``<path>.lock``, which stays. It ends with its process, however that dies. Where there can be no lock
    (a folder that may not be written, a system without ``fcntl``) none is held: since writes are atomic, the cost is
    only work done twice.
    """
    descriptor = _lock(Path(f"{path}.lock"))
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(file: Path) -> int | None:
    try:
        import fcntl

        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            return None
        raise
    return descriptor
