"""The timing cache: what TensorRT measured of kernels on one GPU, so that the next build need not do it again."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from ..errors import BundleError
from .build_target import BuildTarget
from .builder_library import Api
from .storage import atomic_write, cache_dir, locked

__all__ = ["TimingCache"]

_log = logging.getLogger(__name__)


class TimingCache:
    """The cache of one version of the library on one kind of GPU; does nothing for a builder that times nothing.

    Arguments:
        api: The builder.
        target: The GPU.
    """

    def __init__(self, api: Api, target: BuildTarget) -> None:
        self.used = api.library.timing_cache
        gpu = hashlib.sha256(f"{target.gpu}|{target.arch}".encode()).hexdigest()[:16]
        self.path: Path = cache_dir() / "timing" / f"{api.kind}{api.version}-{gpu}.cache"

    def load(self, config: Any) -> None:
        """Give the builder what is kept; that of another device or version, or a broken one, is not taken."""
        if not self.used:
            return
        try:
            data = self.path.read_bytes()
        except OSError:
            data = b""
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, False):
            _log.info("%s is of another device or version, or damaged: timing begins anew", self.path)
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def store(self, config: Any) -> None:
        """Keep what the builder has measured, together with what others have kept meanwhile; a failure is no error."""
        if not self.used:
            return
        cache = config.get_timing_cache()
        if cache is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(self.path):
                if self.path.is_file():
                    other = config.create_timing_cache(self.path.read_bytes())
                    if other is not None:
                        cache.combine(other, False)
                atomic_write(self.path, bytes(cache.serialize()))
        except (OSError, BundleError) as error:
            _log.info("timings are not kept: %s", error)
