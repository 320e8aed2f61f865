"""Randomness: torch's CPU generator bit for bit, and counter-based streams, one for each picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..engines.binding import Array
from ..errors import ParameterError
from .boxmuller import box_muller16

__all__ = ["Noise", "PerImage", "PhiloxGenerator", "TorchGenerator"]

Shape: TypeAlias = "int | Sequence[int]"


class Noise(Protocol):
    """Anything that draws standard normals."""

    def randn(self, shape: Shape) -> Array:
        """float32 of `shape`, independent N(0, 1)."""
        ...


class TorchGenerator:
    """``torch.Generator().manual_seed(seed)`` on the CPU, in NumPy.

    `randn`, `rand` and `randint` return what ``torch.randn``, ``torch.rand`` and ``torch.randint`` (float32,
    int64) return in any order of calls. Below 16 values normals are drawn one by one in float64, two at a
    time with the second kept for the next such draw; from 16 values on, 16 uniforms make 16 normals, and when
    the size is no multiple of 16 the *last* 16 values are drawn anew.

    Equal in every bit to torch 2.13 on x86-64 processors with AVX2: each of the 2^24 uniforms gives the same
    radius, sine and cosine. torch itself draws normals that differ in the last bits on processors without
    AVX2, Arm among them; this class draws the x86-64 ones everywhere.

    Arguments:
        seed: Any integer that torch takes, -2^63 … 2^64-1; torch uses its lower 32 bits.
    """

    def __init__(self, seed: Any) -> None:
        if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= int(seed) < 2**64:
            raise ParameterError(f"seed is {seed!r}, need a whole number from -2^63 to 2^64-1; pass an int")
        self._bits = np.random.MT19937()
        self._bits.state = {
            "bit_generator": "MT19937",
            "state": {"key": _mt19937_key(int(seed) & 0xFFFFFFFF), "pos": 624},
        }
        self._second: float | None = None

    def randn(self, shape: Shape) -> Array:
        """float32 of `shape`, as ``torch.randn(shape)``."""
        extents, size = _size(shape)
        if size < 16:
            return np.reshape(np.array([self._normal() for _ in range(size)], dtype=np.float32), extents)
        values = np.empty(size, dtype=np.float32)
        whole = size - size % 16
        uniforms = self._uniforms(size)
        box_muller16(uniforms[:whole], values[:whole])
        if whole != size:
            box_muller16(self._uniforms(16), values[-16:])
        return np.reshape(values, extents)

    def rand(self, shape: Shape) -> Array:
        """float32 of `shape` in [0, 1), as ``torch.rand(shape)``."""
        extents, size = _size(shape)
        return np.reshape(self._uniforms(size), extents)

    def randint(self, low: int, high: int, shape: Shape) -> Array:
        """int64 of `shape` in [low, high), as ``torch.randint(low, high, shape)``."""
        extents, size = _size(shape)
        span = high - low
        if not 0 < span < 2**63:
            raise ParameterError(f"randint has no value between {low} and {high}; pass low < high")
        if span >= 1 << 28:
            words: Array = np.reshape(self._bits.random_raw(2 * size), (size, 2))
            draws: Array = (words[:, 0] << np.uint64(32)) | words[:, 1]
        else:
            draws = self._bits.random_raw(size)
        return np.reshape((draws % np.uint64(span)).astype(np.int64) + low, extents)

    def _uniforms(self, size: int) -> Array:
        words: Array = self._bits.random_raw(size)
        return np.asarray(np.multiply(words & np.uint64(0xFFFFFF), 2.0**-24, dtype=np.float32))

    def _uniform64(self) -> float:
        high, low = (int(word) for word in self._bits.random_raw(2))
        return float(((high << 32) | low) & (2**53 - 1)) * 2.0**-53

    def _normal(self) -> float:
        """One normal by Box and Muller's formula in float64, or the one left over from the last call."""
        if self._second is not None:
            value, self._second = self._second, None
            return value
        angle = 2.0 * math.pi * self._uniform64()
        radius = math.sqrt(-2.0 * math.log1p(-self._uniform64()))
        self._second = radius * math.sin(angle) + 0.0
        return radius * math.cos(angle) + 0.0


class PhiloxGenerator:
    """A counter-based stream: (seed, stream) names it, and no two streams overlap.

    Bits are those of Philox 4x64-10, normals those of `box_muller16`, so values do not depend on the
    processor or on the version of NumPy.

    Arguments:
        seed: 0 … 2^64-1.
        stream: 0 … 2^64-1, for instance the number of the picture.

    References:
        Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        if not (0 <= seed < 2**64 and 0 <= stream < 2**64):
            raise ParameterError(f"seed {seed} and stream {stream} must lie in 0 … 2^64-1; pass such integers")
        self._bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))

    def randn(self, shape: Shape) -> Array:
        """float32 of `shape`, independent N(0, 1)."""
        extents, size = _size(shape)
        padded = -(-size // 16) * 16
        values = np.empty(padded, dtype=np.float32)
        box_muller16(self._uniforms(padded), values)
        return np.reshape(values[:size], extents)

    def rand(self, shape: Shape) -> Array:
        """float32 of `shape`, uniform in [0, 1)."""
        extents, size = _size(shape)
        return np.reshape(self._uniforms(size), extents)

    def _uniforms(self, size: int) -> Array:
        words: Array = self._bits.random_raw(-(-size // 2))
        halves = np.stack([words >> np.uint64(40), (words >> np.uint64(8)) & np.uint64(0xFFFFFF)], axis=-1)
        return np.asarray(np.multiply(np.reshape(halves, -1)[:size], 2.0**-24, dtype=np.float32))


class PerImage:
    """One source of noise for each picture of a batch, so that a picture does not depend on its neighbours.

    With `TorchGenerator` s it draws what diffusers draws for a list of generators.

    Arguments:
        sources: A source for each row of what will be drawn.
    """

    def __init__(self, sources: Sequence[Noise]) -> None:
        self._sources = tuple(sources)

    @classmethod
    def torch(cls, seeds: Sequence[int]) -> PerImage:
        """A `TorchGenerator` for each seed."""
        return cls([TorchGenerator(seed) for seed in seeds])

    @classmethod
    def philox(cls, seed: int, images: int, *, first: int = 0) -> PerImage:
        """Streams ``first`` … ``first + images - 1`` of a seed."""
        return cls([PhiloxGenerator(seed, first + i) for i in range(images)])

    def randn(self, shape: Shape) -> Array:
        """float32 of `shape` (images, …), row i from source i."""
        extents, _ = _size(shape)
        if not extents or extents[0] != len(self._sources):
            raise ParameterError(
                f"noise of shape {extents} was asked of {len(self._sources)} sources; give one for each picture"
            )
        return np.concatenate([source.randn((1, *extents[1:])) for source in self._sources])


def _size(shape: Shape) -> tuple[tuple[int, ...], int]:
    extents: tuple[int, ...] = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
    if any(n < 0 for n in extents):
        raise ParameterError(f"shape {extents} has a negative extent; pass 0 or more")
    return extents, math.prod(extents)


def _mt19937_key(seed: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The 624 words that Matsumoto and Nishimura's init_genrand makes of a 32-bit seed."""
    words = [seed]
    for i in range(1, 624):
        words.append((1812433253 * (words[-1] ^ (words[-1] >> 30)) + i) & 0xFFFFFFFF)
    return np.array(words, dtype=np.uint32)
