"""The module cuda.core without a GPU: its names and signatures, on host memory.

"Device" memory is host memory that holds NaN at first and again once it was freed. A stream is a queue that is worked
off no earlier than it must be: when it, an event or the device is synchronised. So a pinned buffer that is written
again too early, or an order between two streams that nothing establishes, shows in the numbers. While a graph is
recorded, work is kept for its launches. Kernels are CUDA C compiled by the host's C++ compiler, their threads one after
another; without a compiler they cannot be launched, see `compiler`.

What the package calls of cuda.core stands in `fake_cuda_api`; `test_cuda_api.py` holds this fake to that, and that to
the real module where it is installed.
"""

from __future__ import annotations

import ctypes
import sys
from collections import deque, namedtuple
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from fake_cuda_kernels import CUDAError, Kernel, compiler

__all__ = ["Machine", "compiler", "current", "install", "module"]

ComputeCapability = namedtuple("ComputeCapability", "major minor")


class Machine:
    """All there is of the fake GPU, as tests want to see it."""

    def __init__(self) -> None:
        self.memory: dict[int, tuple[np.ndarray[Any, Any], str]] = {}
        self.dropped: list[int] = []
        self.running = 0
        self.streams: dict[int, Stream] = {}
        self.allocations = 0
        self.launches = 0
        self.copies: list[tuple[str, int]] = []
        """Every copy that was enqueued: its kind ("host-device", "device-host", "device-device") and bytes."""

    def allocate(self, size: int, kind: str) -> Buffer:
        self.allocations += 1
        block = np.full(size, 0xFF, dtype=np.uint8)
        self.memory[block.ctypes.data] = (block, kind)
        return Buffer(block.ctypes.data, size, allocated_by=self)

    def free(self, address: int) -> None:
        """Free memory; what Python's collector drops in the middle of a stream's work is freed after it."""
        self.dropped.append(address)
        while self.dropped and not self.running:
            block, _ = self.memory.pop(self.dropped.pop())
            block.fill(0xFF)

    def kind(self, address: int, size: int = 1) -> str:
        """ "device", "pinned", or "host" for memory that CUDA does not know."""
        for start, (block, kind) in self.memory.items():
            if start <= address < start + block.size:
                if address + size > start + block.size:
                    raise CUDAError("CUDA_ERROR_ILLEGAL_ADDRESS: beyond the end of an allocation")
                return kind
        return "host"

    def enqueue(self, handle: int, work: Callable[[], None]) -> None:
        """Put work on the stream of that handle, as a library that is given the handle does."""
        self.streams[handle].put(work)

    def array(self, array: Any) -> np.ndarray[Any, Any]:
        """The memory of a `DeviceArray` as it is now, whatever is still enqueued."""
        assert self.kind(array.pointer, array.nbytes) == "device"
        raw = (ctypes.c_uint8 * array.nbytes).from_address(array.pointer)
        return np.frombuffer(raw, dtype=array.dtype).reshape(array.shape)

    @property
    def live(self) -> int:
        """Bytes of device memory in use."""
        return sum(block.size for block, kind in self.memory.values() if kind == "device")


class _Current:
    machine = Machine()


def current() -> Machine:
    """The GPU that was installed last."""
    return _Current.machine


class EventOptions:
    def __init__(self, timing_enabled: bool = False) -> None:
        self.timing_enabled = timing_enabled


class Event:
    def __init__(self, timing: bool) -> None:
        self.timing = timing
        self.done = True
        self.stream: Stream | None = None
        self.time = 0.0

    def sync(self) -> None:
        while not self.done:
            assert self.stream is not None
            self.stream.step()

    def __sub__(self, other: Event) -> float:
        if not (self.timing and other.timing and self.done and other.done):
            raise CUDAError("CUDA_ERROR_NOT_READY")
        return self.time - other.time


class Stream:
    _handles = 0x5000
    _ticks = 0.0

    def __init__(self) -> None:
        Stream._handles += 16
        self.handle = Stream._handles
        self.queue: deque[Callable[[], None]] = deque()
        self.recorded: list[Callable[[], None]] | None = None
        current().streams[self.handle] = self

    def put(self, work: Callable[[], None]) -> None:
        (self.queue if self.recorded is None else self.recorded).append(work)

    def step(self) -> None:
        work = self.queue.popleft()
        current().running += 1
        try:
            work()
        finally:
            current().running -= 1

    def sync(self) -> None:
        if self.recorded is not None:
            raise CUDAError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: operation not permitted when stream is capturing")
        while self.queue and not current().running:
            self.step()

    def record(self, event: Event | None = None, options: EventOptions | None = None) -> Event:
        made = event or Event(options is not None and options.timing_enabled)

        def reach() -> None:
            Stream._ticks += 1.0
            made.done, made.time = True, Stream._ticks

        made.done, made.stream = False, self
        self.put(reach)
        return made

    def wait(self, event_or_stream: Event) -> None:
        self.put(event_or_stream.sync)

    def create_graph_builder(self) -> GraphBuilder:
        return GraphBuilder(self)


class GraphBuilder:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._work: list[Callable[[], None]] = []

    def begin_building(self, mode: str = "relaxed") -> GraphBuilder:
        assert mode in ("relaxed", "thread_local", "global")
        self._stream.recorded = self._work
        return self

    def end_building(self) -> GraphBuilder:
        if self._stream.recorded is None:
            raise RuntimeError("Graph builder is not building.")
        self._stream.recorded = None
        return self

    def complete(self) -> Graph:
        assert self._stream.recorded is None
        return Graph(self._work)

    def close(self) -> None:
        if self._stream.recorded is self._work:
            self._stream.recorded = None


class Graph:
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self._work = list(work)

    def launch(self, stream: Stream) -> None:
        current().launches += 1
        for work in self._work:
            stream.put(work)

    def close(self) -> None:
        self._work = []


class Buffer:
    def __init__(self, handle: int, size: int, owner: Any = None, allocated_by: Machine | None = None) -> None:
        self.handle, self.size, self.owner = handle, size, owner
        self._machine = allocated_by

    @staticmethod
    def from_handle(ptr: int, size: int, owner: Any = None) -> Buffer:
        return Buffer(int(ptr), int(size), owner)

    @property
    def device_id(self) -> int:
        return 0 if current().kind(self.handle) == "device" else -1

    def copy_from(self, src: Buffer, *, stream: Stream) -> None:
        if src.size != self.size:
            raise ValueError(f"buffer sizes mismatch between src and dst (sizes: {src.size} vs {self.size})")
        source, target, size = src.handle, self.handle, self.size
        kinds = current().kind(source, size), current().kind(target, size)
        names = ["device" if kind == "device" else "host" for kind in kinds]
        current().copies.append(("-".join(names), size))
        if kinds[0] == "host":  # read before the call returns
            kept = (ctypes.c_uint8 * size).from_buffer_copy(ctypes.string_at(source, size))
            stream.put(lambda: _move(target, ctypes.addressof(kept), size))
        else:
            stream.put(lambda: _move(target, source, size))
        if kinds[1] == "host":  # there when the call returns
            stream.sync()

    def fill(self, value: bytes, *, stream: Stream) -> None:
        if len(value) not in (1, 2, 4) or self.size % len(value):
            raise ValueError(f"value must be 1, 2, or 4 bytes, got {len(value)}")
        target, content = self.handle, bytes(value) * (self.size // len(value))
        current().kind(target, self.size)
        stream.put(lambda: _move(target, content, len(content)))

    def close(self, stream: Stream | None = None) -> None:
        found, self._machine = self._machine, None
        if found is not None:
            found.free(self.handle)

    def __del__(self) -> None:
        self.close()


def _move(target: int, source: Any, size: int) -> None:
    ctypes.memmove(target, source, size)


class Device:
    def __init__(self, device_id: int | None = None) -> None:
        self.device_id = device_id or 0
        if self.device_id:
            raise ValueError(f"device_id must be within [0, 1), got {device_id}")
        self.name = "Fake"
        self.compute_capability = ComputeCapability(8, 6)

    def set_current(self) -> None:
        pass

    def create_stream(self) -> Stream:
        return Stream()

    def allocate(self, size: int, *, stream: Stream) -> Buffer:
        if stream.recorded is not None:
            raise CUDAError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        return current().allocate(size, "device")

    def sync(self) -> None:
        for stream in current().streams.values():
            stream.sync()


class LegacyPinnedMemoryResource:
    def allocate(self, size: int) -> Buffer:
        return current().allocate(size, "pinned")


class ProgramOptions:
    def __init__(self, arch: str | None = None, std: str | None = None) -> None:
        self.arch = arch


class Program:
    def __init__(self, code: str, code_type: str, options: ProgramOptions | None = None) -> None:
        assert code_type == "c++"
        self._code = code

    def compile(self, target_type: str) -> ObjectCode:
        assert target_type == "cubin"
        return ObjectCode(self._code.encode())


class ObjectCode:
    def __init__(self, code: bytes) -> None:
        self.code = code

    @staticmethod
    def from_cubin(module: bytes) -> ObjectCode:
        return ObjectCode(bytes(module))

    def get_kernel(self, name: str) -> Kernel:
        return Kernel(self.code.decode(), name)


class LaunchConfig:
    def __init__(self, grid: int, block: int) -> None:
        self.grid, self.block = (int(grid), 1, 1), (int(block), 1, 1)


def launch(stream: Stream, config: LaunchConfig, kernel: Kernel, *kernel_args: Any) -> None:
    current().launches += 1
    grid, block = config.grid[0], config.block[0]
    stream.put(lambda: kernel(grid, block, kernel_args, current().kind))


class _OnHost:
    """What gives out the fake's memory, told to NumPy as the host memory that it is."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __dlpack__(self, **_: Any) -> Any:
        return self.source.__dlpack__(stream=-1)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class StridedMemoryView:
    """Of NumPy arrays, which stand in for another library's tensors here."""

    @classmethod
    def from_dlpack(cls, obj: Any, stream_ptr: int | None = None) -> Any:
        assert stream_ptr == -1
        array = np.from_dlpack(_OnHost(obj))
        strides = tuple(step // array.itemsize for step in array.strides)
        return SimpleNamespace(ptr=array.ctypes.data, shape=array.shape, strides=strides, dtype=array.dtype, obj=obj)

    @classmethod
    def from_buffer(cls, buffer: Buffer, shape: tuple[int, ...], *, dtype: Any = None) -> StridedMemoryView:
        made = cls()
        made.buffer = buffer  # type: ignore[attr-defined]
        raw = (ctypes.c_uint8 * buffer.size).from_address(buffer.handle)
        made.array = np.frombuffer(raw, dtype=np.uint8).view(dtype).reshape(shape)  # type: ignore[attr-defined]
        return made

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        return self.array.__dlpack__()  # type: ignore[attr-defined]


def module() -> dict[str, ModuleType]:
    """What goes into ``sys.modules``, by name."""
    made = {name: ModuleType(name) for name in ("cuda", "cuda.core", "cuda.core.utils", "cuda.core.graph")}
    for thing in (
        Buffer, Device, Event, EventOptions, LaunchConfig, LegacyPinnedMemoryResource, ObjectCode, Program,
        ProgramOptions, Stream, launch,
    ):  # fmt: skip
        setattr(made["cuda.core"], thing.__name__, thing)
    made["cuda.core.utils"].StridedMemoryView = StridedMemoryView  # type: ignore[attr-defined]
    made["cuda.core.graph"].GraphBuilder, made["cuda.core.graph"].Graph = GraphBuilder, Graph  # type: ignore[attr-defined]
    made["cuda.core"].utils, made["cuda.core"].graph = made["cuda.core.utils"], made["cuda.core.graph"]  # type: ignore[attr-defined]
    made["cuda"].core = made["cuda.core"]  # type: ignore[attr-defined]
    return made


def install(monkeypatch: Any) -> Machine:
    """Make the fake importable as cuda.core, with an empty GPU; returns what tests look at."""
    from sfumato.engines import cuda

    _Current.machine = Machine()
    for name, made in module().items():
        monkeypatch.setitem(sys.modules, name, made)
    cuda.open_cuda.cache_clear()
    return current()
