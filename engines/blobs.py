"""Blobs: compiled networks kept in the cache folder under a complete key.

A blob file is a 4096-byte header and the payload. The header is the line ``sfumato-blob 1``, then lines with the hash
and the length of the payload and the key it was compiled for, filled up with zeros. The payload begins on a page, so
that it can be mapped. A file that is not exactly that is compiled again; a cache that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from ..errors import BundleError
from .binding import Array
from .storage import atomic_write, cache_dir, locked

__all__ = ["BlobStore", "cache_limit"]

HEADER = 4096
MAGIC = b"sfumato-blob 1\n"
_log = logging.getLogger(__name__)


def cache_limit() -> int:
    """Bytes that all blobs may take together: ``$SFUMATO_CACHE_LIMIT``, else 4 GiB; the longest unused go first."""
    try:
        return int(os.environ.get("SFUMATO_CACHE_LIMIT", ""))
    except ValueError:
        return 4 << 30


class BlobStore:
    """One compiled network in the cache.

    Arguments:
        tag: Tag of its target, the name of its folder.
        key: Everything that the compiled bytes depend on; equal keys mean interchangeable blobs.
    """

    def __init__(self, tag: str, key: Mapping[str, object]) -> None:
        self.key = json.dumps(key, sort_keys=True).encode()
        name = hashlib.sha256(self.key).hexdigest()
        self.path = cache_dir() / tag / f"{name[:32]}.blob"

    def lock(self) -> AbstractContextManager[None]:
        """Hold this blob against other processes while it is loaded or compiled."""
        return locked(self.path)

    def load(self) -> Array | None:
        """The payload, uint8 (n,), mapped copy-on-write; None if there is none or it is damaged."""
        try:
            with self.path.open("rb") as file:
                header = file.read(HEADER)
                size = os.fstat(file.fileno()).st_size
            if size <= HEADER or header != self._header(header[len(MAGIC) : len(MAGIC) + 64], size - HEADER):
                return self._damaged("its header does not fit")
            payload = np.memmap(self.path, dtype=np.uint8, mode="c", offset=HEADER)
            if hashlib.sha256(payload.data).hexdigest().encode() != header[len(MAGIC) : len(MAGIC) + 64]:
                return self._damaged("its hash does not fit")
            with contextlib.suppress(OSError):  # a cache that may only be read
                os.utime(self.path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return self._damaged(str(error))
        return payload

    def store(self, payload: bytes | memoryview) -> bool:
        """Keep `payload`; False if the cache cannot be written, which is no error."""
        digest = hashlib.sha256(payload).hexdigest().encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            atomic_write(self.path, self._header(digest, len(payload)), payload)
            self._prune()
        except (OSError, BundleError) as error:
            _log.info("not cached: %s", error)
            return False
        return True

    def discard(self) -> None:
        """Remove the blob, e.g. because the library refused it."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _header(self, digest: bytes, length: int) -> bytes:
        key = hashlib.sha256(self.key).hexdigest().encode()
        return b"".join((MAGIC, digest, b"\n%d\n" % length, key, b"\n")).ljust(HEADER, b"\0")

    def _damaged(self, reason: str) -> Array | None:
        _log.info("compiling again: %s is damaged, %s", self.path, reason)
        return None

    def _prune(self) -> None:
        blobs: list[tuple[int, int, Path]] = []
        for path in cache_dir().glob("*/*.blob"):
            with contextlib.suppress(OSError):
                state = path.stat()
                blobs.append((state.st_mtime_ns, state.st_size, path))
        spare = cache_limit() - sum(size for _, size, _ in blobs)
        for _, size, path in sorted(blobs):
            if spare >= 0:
                break
            if path != self.path:
                path.unlink(missing_ok=True)
                spare += size
