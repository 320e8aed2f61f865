"""Arrays in the memory of a GPU: shape, type and address, exchanged with other libraries without a copy."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import BindingError, EngineError
from .binding import Array

if TYPE_CHECKING:
    from .cuda import Cuda, Stream

__all__ = ["DeviceArray", "DeviceMemory"]


class DeviceMemory:
    """What an array lies in: memory of ours, freed when the last array that looks at it is gone, or somebody else's."""

    def __init__(self, owner: Any, release: Callable[[Any], None] | None = None) -> None:
        self.owner = owner
        self._finalizer = None if release is None else weakref.finalize(self, release, owner)
        if self._finalizer is not None:
            self._finalizer.atexit = False  # the process gives all memory back by ending

    def close(self) -> None:
        """Free it now."""
        self.owner = None
        if self._finalizer is not None:
            self._finalizer()


class DeviceArray:
    """A C-contiguous array on a GPU.

    Made by `Cuda.empty` and `Cuda.upload`, or by `DeviceArray.view` of what another library has there. Slices and
    reshapes look at the same memory. Nothing says on which stream it was written: order is the caller's.

    Arguments:
        cuda: The GPU.
        shape: Extents.
        dtype: Type of the elements.
        address: Where it begins.
        memory: What it lies in.
        arithmetic: What calculates with it, for the runtime; see `kernels.DeviceArithmetic`.
    """

    __slots__ = ("_address", "_core", "_memory", "arithmetic", "cuda", "dtype", "nbytes", "shape", "size")

    def __init__(
        self,
        cuda: Cuda,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        address: int,
        memory: DeviceMemory,
        arithmetic: Any = None,
    ) -> None:
        self.cuda = cuda
        self.shape = tuple(shape)
        self.dtype = dtype
        self.size = int(np.prod(self.shape, dtype=np.int64))
        self.nbytes = self.size * dtype.itemsize
        self.arithmetic = arithmetic
        self._address = address
        self._memory = memory
        self._core: Any = None

    @staticmethod
    def view(source: Any) -> DeviceArray:
        """An array over the memory of any object with ``__cuda_array_interface__`` or DLPack, which it keeps alive.

        The other library's work has to be done, or to be ordered before the stream that the array is used on.

        Raises:
            BindingError: It is not on a GPU, not C-contiguous, or has neither protocol.
        """
        from .cuda import open_cuda

        if isinstance(source, DeviceArray):
            return source
        facts = getattr(source, "__cuda_array_interface__", None)
        if facts is not None:
            dtype = np.dtype(str(facts["typestr"]))
            shape, address, strides = tuple(facts["shape"]), int(facts["data"][0]), facts.get("strides")
            if hasattr(source, "__dlpack_device__"):
                where = source.__dlpack_device__()
            else:
                where = 2, open_cuda().view(address, 1, source).device_id
            keep = source
        elif hasattr(source, "__dlpack__"):
            where = source.__dlpack_device__()
            _on_device(where)
            keep = open_cuda(int(where[1])).foreign(source)
            shape, address, dtype = tuple(keep.shape), int(keep.ptr), np.dtype(keep.dtype)
            strides = None if keep.strides is None else tuple(step * dtype.itemsize for step in keep.strides)
        else:
            raise BindingError(
                f"a {type(source).__name__} has neither __cuda_array_interface__ nor DLPack; "
                "pass a tensor on the GPU, or cuda.upload(array, stream) of a NumPy array"
            )
        _on_device(where)
        if strides is not None and not _contiguous(shape, strides, dtype.itemsize):
            raise BindingError(f"the array of {shape} has strides {tuple(strides)}; pass a C-contiguous copy of it")
        return DeviceArray(open_cuda(int(where[1])), shape, dtype, address, DeviceMemory(keep))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def pointer(self) -> int:
        """The address of the first element; `EngineError` once it was closed."""
        if self._memory.owner is None:
            raise EngineError(f"the device memory of an array {self.shape} was closed; keep it open while it is used")
        return self._address

    @property
    def core(self) -> Any:
        """cuda.core's Buffer over exactly this array."""
        if self._core is None or self._memory.owner is None:
            self._core = self.cuda.view(self.pointer, self.nbytes, self._memory)
        return self._core

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; ``stream`` is None, so synchronise the stream it was written on first."""
        data = self.pointer, False
        typestr = np.lib.format.dtype_to_descr(self.dtype)
        return {"shape": self.shape, "typestr": typestr, "data": data, "version": 3, "strides": None, "stream": None}

    def __dlpack__(self, **options: Any) -> Any:
        """A DLPack capsule; synchronise the stream it was written on first."""
        return self.cuda.exported(self).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.cuda.device

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype} {self.shape} on GPU {self.cuda.device}>"

    def __getitem__(self, rows: slice) -> DeviceArray:
        """Rows a:b, in the same memory."""
        if not isinstance(cast(object, rows), slice) or rows.step not in (None, 1) or not self.shape:
            raise BindingError(f"an array on a GPU is sliced by rows a:b alone, not by {rows!r}; slice a copy of it")
        start, stop, _ = rows.indices(self.shape[0])
        row = self.nbytes // self.shape[0] if self.shape[0] else 0
        return self._at((max(stop - start, 0), *self.shape[1:]), self._address + start * row)

    def reshape(self, shape: Sequence[int]) -> DeviceArray:
        """The same memory in another shape of as many elements; one extent may be -1."""
        extents = [int(extent) for extent in shape]
        if extents.count(-1) == 1:
            rest = -int(np.prod(extents, dtype=np.int64))
            extents[extents.index(-1)] = self.size // rest if rest else 0
        if int(np.prod(extents, dtype=np.int64)) != self.size or any(extent < 0 for extent in extents):
            raise BindingError(f"{self.size} elements of {self.shape} do not fit {tuple(shape)}; give as many")
        return self._at(tuple(extents), self._address)

    def copy_from(self, source: Array | DeviceArray, stream: Stream) -> None:
        """Enqueue a copy into this array from one of the same shape and type, C-contiguous.

        A pinned source is read later: it must not change before the stream comes to it. Other host memory is read
        before this returns.
        """
        self._fits(source, "copied from")
        self._copy(self.core, self._buffer(source), stream)

    def copy_to(self, target: Array | DeviceArray, stream: Stream) -> None:
        """Enqueue a copy of this array into one of the same shape and type, C-contiguous.

        It is there once the stream has been synchronised.
        """
        self._fits(target, "copied to")
        self._copy(self._buffer(target), self.core, stream)

    def numpy(self, stream: Stream) -> Array:
        """A copy in host memory, after all that was enqueued on `stream`. Waits."""
        result = np.empty(self.shape, self.dtype)
        self.copy_to(result, stream)
        stream.synchronize()
        return result

    def fill(self, value: float, stream: Stream) -> None:
        """Enqueue: every element becomes `value`. For types of one, two or four bytes."""
        if self.size:
            pattern = np.asarray(value, dtype=self.dtype).tobytes()
            try:
                self.core.fill(pattern, stream=stream.core)
            except Exception as error:
                raise EngineError(f"an array {self.shape} cannot be filled ({error})") from error

    def close(self) -> None:
        """Free the memory once the GPU is done with it, for every array that looks at it. Twice is harmless."""
        self._core = None
        self._memory.close()

    def _at(self, shape: tuple[int, ...], address: int) -> DeviceArray:
        return DeviceArray(self.cuda, shape, self.dtype, address, self._memory, self.arithmetic)

    def _buffer(self, other: Array | DeviceArray) -> Any:
        return other.core if isinstance(other, DeviceArray) else self.cuda.view(other.ctypes.data, other.nbytes, other)

    def _copy(self, target: Any, source: Any, stream: Stream) -> None:
        if not self.size:
            return
        try:
            target.copy_from(source, stream=stream.core)
        except Exception as error:
            raise EngineError(f"an array {self.shape} cannot be copied ({error})") from error

    def _fits(self, other: Array | DeviceArray, verb: str) -> None:
        if other.shape != self.shape or other.dtype != self.dtype:
            raise BindingError(
                f"an array {self.dtype} {self.shape} is {verb} {other.dtype} {other.shape}; "
                "give it the same shape and type"
            )
        if isinstance(other, np.ndarray) and not other.flags.c_contiguous:
            raise BindingError(f"an array {self.shape} is {verb} a strided one; pass np.ascontiguousarray of it")


def _on_device(where: tuple[int, int]) -> None:
    if int(where[0]) not in (2, 13):  # kDLCUDA, kDLCUDAManaged
        raise BindingError(f"the array is in memory of DLPack kind {int(where[0])}, not on a GPU; upload it first")


def _contiguous(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    expected = itemsize
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != expected:
            return 0 in shape
        expected *= extent
    return True
