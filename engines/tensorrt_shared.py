"""What the TensorRT engines of one bundle share on a GPU: runtime, logger, stream, and the arena of activations."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from ..errors import EngineError
from .builder_library import Api
from .builder_logger import library_logger
from .bundle import Bundle
from .cuda import Cuda, DeviceArray

__all__ = ["Shared", "share"]


class Shared:
    """Runtime, stream and arena of the engines of one bundle.

    Activations live only while a network runs, and the networks of a bundle run one after another. So all engines
    compute in one piece of memory, the arena, which is as large as the most that any of them needs, not as their sum.
    That is right only if no two of them ever overlap in time. Here they cannot: they all enqueue on **one stream**,
    which does its work in order, whichever thread or engine it came from. An engine each would gain nothing from a
    stream of its own, since it had to wait for the others by events anyway; and with one stream, what one engine
    writes another may read without more ado. `lock` keeps threads from enqueuing into each other, and from moving the
    arena in between.

    Arguments:
        api: The library.
        cuda: The GPU.
    """

    def __init__(self, api: Api, cuda: Cuda) -> None:
        self.api, self.cuda = api, cuda
        self.lock = threading.RLock()
        self.logger: Any = library_logger(api)
        self.stream = cuda.stream()
        self.runtime: Any = api.trt.Runtime(self.logger)
        self._arena: DeviceArray | None = None
        self._users = 0

    @property
    def arena_bytes(self) -> int:
        """What the arena takes now."""
        return 0 if self._arena is None else self._arena.nbytes

    def join(self) -> None:
        """One more engine uses this."""
        with self.lock:
            self._users += 1

    def leave(self) -> None:
        """One engine less; with the last one the arena goes."""
        with self.lock:
            self._users -= 1
            if self._users <= 0:
                self._drop()

    def reserve(self, network: str, size: int) -> DeviceArray:
        """The arena, made larger if it has less than `size` bytes; contexts that had another are told of it.

        Raises:
            EngineError: There is not so much memory.
        """
        if self._arena is None or self._arena.nbytes < size:
            before = self.arena_bytes
            self._drop()  # first, so that old and new need not fit at once
            try:
                self._arena = self.cuda.empty((max(size, 256),), "uint8")
            except EngineError as error:
                raise EngineError(
                    f"{network}: needs {size} bytes of GPU memory for its activations at these shapes, which cannot be "
                    f"had; the engines of this bundle had {before} ({error}). Close what is not needed, use smaller "
                    "shapes, or build a plan for smaller ones with sfumato build --range"
                ) from error
        return self._arena

    def _drop(self) -> None:
        if self._arena is not None:
            self.stream.synchronize()  # what was enqueued still computes in it
            self._arena.close()
            self._arena = None


_shared: weakref.WeakValueDictionary[tuple[str, Api, int], Shared] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def share(bundle: Bundle, api: Api, cuda: Cuda) -> Shared:
    """What the engines of this bundle share; made for the first of them, and gone with the last."""
    key = (str(bundle.path.resolve()), api, id(cuda))
    with _lock:
        found = _shared.get(key)
        if found is None or found.cuda is not cuda:
            found = _shared[key] = Shared(api, cuda)
        return found
