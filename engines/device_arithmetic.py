"""The runtime's arithmetic on a GPU: every operation one launch or copy, enqueued on an engine's stream.

It offers what `sfumato.runtime.arithmetic.Arithmetic` asks for, as `HostArithmetic` there does for NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NonFiniteError
from .binding import Array
from .device_array import DeviceArray

if TYPE_CHECKING:
    from .cuda import Cuda, Event, Stream

__all__ = ["DeviceArithmetic"]

_NEVER = np.iinfo(np.int32).max


class DeviceArithmetic:
    """Operations on float32 arrays of one shape in the memory of a GPU. Nothing waits but `host` and `Watch.report`.

    Arguments:
        cuda: The GPU.
        stream: Where everything is enqueued; the engine's own, so that its outputs need no waiting.
        shape: Shape of the arrays, () before `like`.
    """

    def __init__(self, cuda: Cuda, stream: Stream, shape: tuple[int, ...] = ()) -> None:
        self._cuda = cuda
        self._stream = stream
        self._shape = shape
        self._staged: list[tuple[Array, Event]] = []
        self._noise: DeviceArray | None = None
        self._turn = 0

    def like(self, x: Array | DeviceArray) -> DeviceArithmetic:
        """The same for arrays of x's shape."""
        self._cuda.activate()
        return DeviceArithmetic(self._cuda, self._stream, x.shape)

    def fits(self, x: Any) -> bool:
        """Whether `x` is an array of this shape on this GPU."""
        return isinstance(x, DeviceArray) and x.shape == self._shape and x.cuda is self._cuda

    def empty(self, like: Any, shape: tuple[int, ...] | None = None) -> DeviceArray:
        """An array of any content, of like's type, and its shape unless another is given."""
        return self._ours(self._cuda.empty(like.shape if shape is None else shape, like.dtype))

    def sent(self, array: Array) -> DeviceArray:
        """A copy of a host array on the GPU; floating point becomes float32."""
        kind = np.float32 if array.dtype.kind == "f" else array.dtype
        return self._ours(self._cuda.upload(np.ascontiguousarray(array, dtype=kind), self._stream))

    def host(self, array: DeviceArray) -> Array:
        """A copy in host memory. Waits for all that was enqueued."""
        return array.numpy(self._stream)

    def staged(self, noise: Array) -> DeviceArray:
        """Fresh noise on the GPU, in an array that the next call overwrites; two pinned buffers take turns."""
        if self._noise is None:
            self._noise = self._cuda.empty(noise.shape, noise.dtype)  # not of `_ours`: that would be a cycle
            pinned = [self._cuda.pinned(noise.shape, noise.dtype) for _ in range(2)]
            self._staged = [(buffer, self._stream.record()) for buffer in pinned]
        buffer, read = self._staged[self._turn]
        self._turn = 1 - self._turn
        read.synchronize()
        np.copyto(buffer, noise)
        self._noise.copy_from(buffer, self._stream)
        self._stream.record(read)
        return self._noise

    def overlaps(self, a: DeviceArray, b: DeviceArray) -> bool:
        """Whether two arrays share memory."""
        return a.pointer < b.pointer + b.nbytes and b.pointer < a.pointer + a.nbytes

    def copy(self, out: DeviceArray, source: DeviceArray) -> None:
        """out = source."""
        out.copy_from(source, self._stream)

    def fill(self, out: DeviceArray, value: float) -> None:
        """Every element of out = value."""
        out.fill(value, self._stream)

    def linear(self, out: DeviceArray, terms: Sequence[tuple[DeviceArray, float]]) -> DeviceArray:
        """out = sum of weight · source."""
        pairs = [(source.pointer, weight) for source, weight in terms]
        self._cuda.kernels.linear(out.pointer, out.size, pairs, self._stream)
        return out

    def solve(self, out: DeviceArray, x: DeviceArray, a: float, y: DeviceArray, b: float) -> DeviceArray:
        """out = (x - a y) / b."""
        return self.linear(out, ((x, 1 / b), (y, -a / b)))

    def guide(self, out: DeviceArray, low: DeviceArray, high: DeviceArray, scale: float) -> DeviceArray:
        """out = low + scale (high - low)."""
        return self.linear(out, ((low, 1 - scale), (high, scale)))

    def deviate(
        self, out: DeviceArray, log_variance: DeviceArray, scale: float, offset: float, noise: DeviceArray
    ) -> DeviceArray:
        """out = exp(scale · log_variance + offset) · noise."""
        numbers = log_variance.pointer, np.float32(scale), np.float32(offset), noise.pointer
        self._launch("deviate", out, np.int64(out.size), *numbers)
        return out

    def blend(
        self,
        out: DeviceArray,
        x: DeviceArray,
        known: tuple[DeviceArray, float],
        noise: tuple[DeviceArray, float],
        masks: tuple[DeviceArray, DeviceArray],
    ) -> DeviceArray:
        """out = (weighted known + weighted noise) · mask + x · rest of (array, weight) twice and (mask, rest)."""
        weighted = known[0].pointer, np.float32(known[1]), noise[0].pointer, np.float32(noise[1])
        self._launch("blend", out, np.int64(out.size), x.pointer, *weighted, *(mask.pointer for mask in masks))
        return out

    def contiguous(self, x: DeviceArray) -> DeviceArray:
        """x as a network takes it, which it is."""
        return x

    def channels(self, array: DeviceArray, first: int, last: int, out: DeviceArray | None = None) -> DeviceArray:
        """Channels first … last - 1 of (B, C, h, w), copied to `out` or to a new array."""
        batch, _, *rest = array.shape
        if out is None:
            out = self.empty(array, (batch, last - first, *rest))
        width, pitch = out.size // batch, array.size // batch
        source = array.pointer + first * (pitch // array.shape[1]) * array.dtype.itemsize
        pitches = np.int64(out.size), np.int64(width), np.int64(width)
        self._launch("rows", out, *pitches, source, np.int64(pitch))
        return out

    def put(self, wide: DeviceArray, x: DeviceArray) -> None:
        """The first channels of wide (B, C + K, h, w) = x (B, C, h, w)."""
        width, pitch = x.size // x.shape[0], wide.size // wide.shape[0]
        arguments = np.int64(x.size), np.int64(width), np.int64(pitch), x.pointer, np.int64(width)
        self._cuda.kernels("rows", x.size, self._stream, wide.pointer, *arguments)

    def watch(self, network: str) -> Watch:
        """What looks for NaN and infinity in a run of `network`."""
        return Watch(self._cuda, self._stream, network)

    def _launch(self, name: str, out: DeviceArray, *arguments: Any) -> None:
        self._cuda.kernels(name, out.size, self._stream, out.pointer, *arguments)

    def _ours(self, array: DeviceArray) -> DeviceArray:
        array.arithmetic = self
        return array


class Watch:
    """Two numbers on the GPU: the first step at which x, and at which the prediction, was not finite."""

    def __init__(self, cuda: Cuda, stream: Stream, network: str) -> None:
        self._cuda = cuda
        self._stream = stream
        self._network = network
        self._first = cuda.empty((2,), np.int32)
        self._seen = cuda.pinned((2,), np.int32)
        self._first.fill(_NEVER, stream)

    def look(self, step: int, x: DeviceArray, prediction: DeviceArray) -> None:
        """Enqueue a look at both."""
        arguments = x.pointer, np.int64(x.size), prediction.pointer, np.int64(prediction.size)
        threads = max(x.size, prediction.size)
        self._cuda.kernels("look", threads, self._stream, self._first.pointer, np.int32(step), *arguments)

    def report(self) -> None:
        """Wait, and raise `NonFiniteError` if x was not finite after a step that was looked at."""
        self._first.copy_to(self._seen, self._stream)
        self._stream.synchronize()
        step, predicted = (int(value) for value in self._seen)
        if step != _NEVER:
            raise NonFiniteError(self._network, step, "prediction" if predicted <= step else "x")
