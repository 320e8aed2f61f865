"""NumPy arrays on their way to the GPU and back, through pinned memory, without waiting more than must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .binding import Array

if TYPE_CHECKING:
    from .cuda import Cuda, Event, Stream
    from .device_array import DeviceArray

__all__ = ["Staging"]


class Staging:
    """Pinned memory beside the inputs and outputs of one set of shapes; made when it is first needed.

    Arguments:
        cuda: The GPU.
        stream: What copies are enqueued on.
    """

    def __init__(self, cuda: Cuda, stream: Stream) -> None:
        self._cuda, self._stream = cuda, stream
        self._going_up: dict[str, Array] = {}
        self._come_down: dict[str, Array] = {}
        self._read: Event | None = None

    def upload(self, feeds: Mapping[str, Array | DeviceArray], targets: Mapping[str, DeviceArray]) -> None:
        """Enqueue copies of `feeds` into `targets`; both may change as soon as this returns, but for device arrays.

        It waits only where pinned memory is still to be read by the last upload.
        """
        host = False
        for name, target in targets.items():
            feed = feeds[name]
            if not isinstance(feed, np.ndarray):
                if feed.pointer != target.pointer:
                    target.copy_from(feed, self._stream)
                continue
            if not host and self._read is not None:
                self._read.synchronize()
            host = True
            pinned = self._going_up.get(name)
            if pinned is None:
                pinned = self._going_up[name] = self._cuda.pinned(target.shape, target.dtype)
            np.copyto(pinned, feed)
            target.copy_from(pinned, self._stream)
        if host:
            self._read = self._stream.record(self._read)

    def download(self, sources: Mapping[str, DeviceArray]) -> dict[str, Array]:
        """`sources` in pinned memory, which the next call writes again. Waits for all that was enqueued."""
        for name, source in sources.items():
            pinned = self._come_down.get(name)
            if pinned is None:
                pinned = self._come_down[name] = self._cuda.pinned(source.shape, source.dtype)
            source.copy_to(pinned, self._stream)
        self._stream.synchronize()
        return dict(self._come_down)
