"""The GPU: device and pinned memory, streams, events, graphs and kernels. The only file that meets cuda.core.

Memory on the device is a `DeviceArray`. Work is enqueued on a `Stream` and done later, in order; what is enqueued on
two streams has no order but the one that events give it. Nothing here waits for the GPU unless it says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineError, MissingDependency
from .binding import Array
from .cuda_stream import Event, Graph, Stream, failing
from .device_array import DeviceArray, DeviceMemory

if TYPE_CHECKING:
    from .device_arithmetic import DeviceArithmetic
    from .kernels import Kernels

__all__ = ["Cuda", "DeviceArray", "Event", "Graph", "Stream", "compile_cubin", "open_cuda"]


@cache
def open_cuda(device: int = 0) -> Cuda:
    """The GPU of that number; one object for each, however often it is asked for.

    Raises:
        MissingDependency: cuda-core is not installed.
        EngineError: It does not load, or there is no driver or no such GPU.
    """
    core = _load()
    with failing(f"GPU {device} cannot be used", "run: sfumato doctor"):
        return Cuda(core, core.Device(device))


class Cuda:
    """A GPU. Get it with `open_cuda`; one thread at a time may use what it gives.

    Arguments:
        core: The module cuda.core.
        device: Its Device.
    """

    def __init__(self, core: Any, device: Any) -> None:
        self.core = core
        self._device = device
        device.set_current()
        self.device: int = int(device.device_id)
        self.name: str = str(device.name)
        major, minor = device.compute_capability
        self.sm: str = f"sm{major}{minor}"
        self._own: Any = device.create_stream()
        self._capturing = 0
        self._later: list[Any] = []

    def __repr__(self) -> str:
        return f"<Cuda {self.device}: {self.name}, {self.sm}>"

    def activate(self) -> None:
        """Make this GPU the current one of the calling thread, as libraries that are handed a stream want it."""
        self._device.set_current()

    def stream(self) -> Stream:
        """A new stream, in no order with any other."""
        with failing("a stream cannot be made"):
            self.activate()
            return Stream(self._device.create_stream(), self.core.EventOptions(timing_enabled=True))

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        """Device memory of any content, C-contiguous, usable on every stream. Waits for its allocation."""
        kind, extents = np.dtype(dtype), tuple(int(extent) for extent in shape)
        size = int(np.prod(extents, dtype=np.int64)) * kind.itemsize
        with failing(f"{size} bytes of device memory cannot be had", "close what is not needed"):
            self.activate()
            buffer = self._device.allocate(max(size, 1), stream=self._own)
            self._own.sync()
        return DeviceArray(self, extents, kind, int(buffer.handle), DeviceMemory(buffer, self._release))

    def upload(self, array: Array, stream: Stream) -> DeviceArray:
        """A copy of a C-contiguous array in new device memory, made on `stream`."""
        made = self.empty(array.shape, array.dtype)
        made.copy_from(array, stream)
        return made

    def pinned(self, shape: Sequence[int], dtype: Any) -> Array:
        """Page-locked host memory of any content as a NumPy array; copies to and from it do not hold the caller up."""
        kind = np.dtype(dtype)
        size = int(np.prod(tuple(shape), dtype=np.int64)) * kind.itemsize
        with failing(f"{size} bytes of pinned memory cannot be had"):
            self.activate()
            buffer = self.core.LegacyPinnedMemoryResource().allocate(max(size, 1))
            raw: Any = (ctypes.c_uint8 * max(size, 1)).from_address(int(buffer.handle))
        raw.buffer = buffer  # lives as long as any array that looks at it
        made: Array = np.ndarray(tuple(shape), kind, raw)
        return made

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """What `work` enqueues on `stream`, as a graph; it is recorded, not done.

        `work` may not allocate, synchronise or copy to memory that is not pinned. The graph keeps `work`, and so what
        it closes over, and reads and writes the very memory that it was recorded on.
        """
        with failing("the work cannot be recorded as a CUDA graph", "run it without graphs"):
            self.activate()
            builder = stream.core.create_graph_builder()
            builder.begin_building("relaxed")
            self._capturing += 1
            try:
                work()
                graph = builder.end_building().complete()
            finally:
                with contextlib.suppress(Exception):  # closing ends a recording that went wrong, and fails again then
                    builder.close()
                self._capturing -= 1
                self._release(None)
        return Graph(graph, work)

    def kernel(self, cubin: bytes, name: str) -> Any:
        """A kernel of compiled code, to be handed to `launch`."""
        with failing(f"the kernel {name} does not load on {self.sm}"):
            self.activate()
            return self.core.ObjectCode.from_cubin(cubin).get_kernel(name)

    def launch(self, kernel: Any, grid: Any, stream: Stream, *arguments: Any) -> None:
        """Enqueue a kernel. Pointers are ints, numbers NumPy scalars of exactly the kernel's types."""
        with failing("a kernel cannot be launched"):
            self.core.launch(stream.core, grid, kernel, *arguments)

    def grid(self, threads: int, block: int = 256) -> Any:
        """What `launch` takes as `grid`: as many blocks of `block` threads as make `threads`."""
        return self.core.LaunchConfig(grid=max(1, -(-threads // block)), block=block)

    @cached_property
    def kernels(self) -> Kernels:
        """The element-wise kernels, compiled for this GPU on first use."""
        from .kernels import Kernels

        return Kernels(self)

    def arithmetic(self, stream: Stream) -> DeviceArithmetic:
        """The arithmetic of the runtime, enqueued on `stream`."""
        from .device_arithmetic import DeviceArithmetic

        return DeviceArithmetic(self, stream)

    def view(self, pointer: int, size: int, owner: Any) -> Any:
        """cuda.core's Buffer of `size` bytes at an address, which keeps `owner` alive."""
        return self.core.Buffer.from_handle(pointer, size, owner=owner)

    def foreign(self, source: Any) -> Any:
        """What another library's DLPack says, as an object with ptr, shape, strides (in elements) and dtype."""
        with failing(f"a {type(source).__name__} cannot be taken over by DLPack"):
            utils = importlib.import_module("cuda.core.utils")
            return utils.StridedMemoryView.from_dlpack(source, stream_ptr=-1)

    def exported(self, array: DeviceArray) -> Any:
        """An object that gives out `array` by DLPack."""
        utils = importlib.import_module("cuda.core.utils")
        return utils.StridedMemoryView.from_buffer(array.core, array.shape, dtype=array.dtype)

    def _release(self, buffer: Any) -> None:
        """Free memory once the device is done with it; while a graph is recorded nothing can be freed, so later."""
        if buffer is not None:
            self._later.append(buffer)
        if self._capturing or not self._later:
            return
        with failing("device memory cannot be freed"):
            self.activate()
            self._device.sync()
            while self._later:
                self._later.pop().close(self._own)


def compile_cubin(source: str, sm: str) -> bytes:
    """CUDA C compiled by NVRTC for one architecture, e.g. "sm86"; needs no GPU and no driver.

    Raises:
        MissingDependency: cuda-core is not installed.
        EngineError: NVRTC is missing, or refuses the source; its log is in the message.
    """
    core = _load()
    with failing("NVRTC cannot compile the kernels", "run: sfumato doctor"):
        options = core.ProgramOptions(arch=sm.replace("sm", "sm_"), std="c++17")
        return bytes(core.Program(source, "c++", options).compile("cubin").code)


def _load() -> Any:
    try:
        return importlib.import_module("cuda.core")
    except ModuleNotFoundError as error:
        raise MissingDependency("cuda-core", "cuda", "running on an NVIDIA GPU") from error
    except Exception as error:  # cuda-core without cuda-bindings is an ImportError, a broken one may be anything
        raise EngineError(f"cuda-core is installed but does not load ({error}); run: sfumato doctor") from error
