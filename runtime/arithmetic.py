"""Arithmetic on pictures wherever they are: on NumPy arrays here, on a GPU's arrays in one launch for an operation.

What samplers, parametrisations, guidance and mask blending do to arrays is a handful of operations. `arithmetic(x)`
gives those for the place, shape and type of x, so the formulas are written once. An array that is not NumPy's brings
its own operations along in an attribute ``arithmetic``; nothing here knows what they run on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np

from ..engines.binding import Array
from ..engines.engine import check_finite
from ..errors import NonFiniteError

__all__ = ["Arithmetic", "HostArithmetic", "Watch", "arithmetic", "engine_arithmetic", "placed"]


class Watch(Protocol):
    """What looks for NaN and infinity in a run."""

    def look(self, step: int, x: Array, prediction: Array) -> None:
        """Look at x after a step and at the prediction that it was made from; may raise now or in `report`."""
        ...

    def report(self) -> None:
        """Raise `NonFiniteError` if anything that was looked at made an x that is not finite."""
        ...


class Arithmetic(Protocol):
    """Operations on arrays of one shape, type and place. `out` shares memory with no other argument.

    `Array` stands for whatever array the place has; on a GPU it is a `DeviceArray`.
    """

    def like(self, x: Array) -> Arithmetic:
        """The operations of this place for arrays of x's shape and type."""
        ...

    def fits(self, x: Array) -> bool:
        """Whether `x` has this shape, type and place."""
        ...

    def empty(self, like: Array, shape: tuple[int, ...] | None = None) -> Array:
        """An array of any content, of like's type, and its shape unless another is given."""
        ...

    def sent(self, array: Array) -> Array:
        """A host array at this place; on a GPU a copy, whose floating point is float32."""
        ...

    def staged(self, noise: Array) -> Array:
        """A fresh host array at this place, until the next call."""
        ...

    def host(self, array: Array) -> Array:
        """An array of this place in host memory."""
        ...

    def overlaps(self, a: Array, b: Array) -> bool:
        """Whether two arrays may share memory."""
        ...

    def copy(self, out: Array, source: Array) -> None:
        """out = source."""
        ...

    def fill(self, out: Array, value: float) -> None:
        """Every element of out = value."""
        ...

    def linear(self, out: Array, terms: Sequence[tuple[Array, float]]) -> Array:
        """out = sum of weight · source, at least one."""
        ...

    def solve(self, out: Array, x: Array, a: float, y: Array, b: float) -> Array:
        """out = (x - a y) / b."""
        ...

    def guide(self, out: Array, low: Array, high: Array, scale: float) -> Array:
        """out = low + scale (high - low)."""
        ...

    def deviate(self, out: Array, log_variance: Array, scale: float, offset: float, noise: Array) -> Array:
        """out = exp(scale · log_variance + offset) · noise."""
        ...

    def blend(
        self,
        out: Array,
        x: Array,
        known: tuple[Array, float],
        noise: tuple[Array, float],
        masks: tuple[Array, Array],
    ) -> Array:
        """out = (weighted known + weighted noise) · mask + x · rest of (array, weight) twice and (mask, rest)."""
        ...

    def contiguous(self, x: Array) -> Array:
        """x as a network takes it: float32, C-contiguous."""
        ...

    def channels(self, array: Array, first: int, last: int, out: Array | None = None) -> Array:
        """Channels first … last - 1 of (B, C, h, w): a view where there are such, else in `out` or a new array."""
        ...

    def put(self, wide: Array, x: Array) -> None:
        """The first channels of wide (B, C + K, h, w) = x (B, C, h, w)."""
        ...

    def watch(self, network: str) -> Watch:
        """What looks for NaN and infinity in a run of `network`."""
        ...


def arithmetic(x: Array) -> Arithmetic:
    """The operations for arrays of x's shape, type and place."""
    if isinstance(cast(object, x), np.ndarray):
        return HostArithmetic(x)
    return cast(Arithmetic, cast(Any, x).arithmetic).like(x)


def engine_arithmetic(engine: object) -> Arithmetic | None:
    """The operations where an engine keeps its arrays; None where that is the host."""
    cuda: Any = getattr(engine, "cuda", None)
    return None if cuda is None else cast(Arithmetic, cuda.arithmetic(cast(Any, engine).stream))


def placed(x: Array, denoiser: object, prepare: object = None) -> Arithmetic:
    """Where a run that starts from the host array x is calculated.

    It is where the denoiser's network keeps its arrays, if the denoiser and all that it wraps can calculate there and
    say so by an attribute ``arithmetic``, and if `prepare` says by ``anywhere`` that it can too; else the host.
    """
    found = cast("Arithmetic | None", getattr(denoiser, "arithmetic", None))
    if found is None or x.dtype != np.float32 or not (prepare is None or getattr(prepare, "anywhere", False)):
        return HostArithmetic(x)
    return found.like(x)


class HostArithmetic:
    """The operations in NumPy, in buffers made at their first use."""

    def __init__(self, like: Array) -> None:
        self._like = like
        self._kept: list[Array] = []

    def like(self, x: Array) -> HostArithmetic:
        """See `Arithmetic`; so for all of these."""
        return HostArithmetic(x)

    def fits(self, x: Array) -> bool:
        return isinstance(cast(object, x), np.ndarray) and x.shape == self._like.shape and x.dtype == self._like.dtype

    def empty(self, like: Array, shape: tuple[int, ...] | None = None) -> Array:
        return np.empty_like(like) if shape is None else np.empty(shape, dtype=like.dtype)

    def sent(self, array: Array) -> Array:
        return array

    def staged(self, noise: Array) -> Array:
        return noise

    def host(self, array: Array) -> Array:
        return array

    def overlaps(self, a: Array, b: Array) -> bool:
        return np.may_share_memory(a, b)

    def copy(self, out: Array, source: Array) -> None:
        np.copyto(out, source)

    def fill(self, out: Array, value: float) -> None:
        out.fill(value)

    def linear(self, out: Array, terms: Sequence[tuple[Array, float]]) -> Array:
        source, weight = terms[0]
        np.multiply(source, weight, out=out)
        for source, weight in terms[1:]:
            scratch = self._scratch()
            np.multiply(source, weight, out=scratch)
            np.add(out, scratch, out=out)
        return out

    def solve(self, out: Array, x: Array, a: float, y: Array, b: float) -> Array:
        np.multiply(y, a, out=out)
        np.subtract(x, out, out=out)
        return np.divide(out, b, out=out)

    def guide(self, out: Array, low: Array, high: Array, scale: float) -> Array:
        np.subtract(high, low, out=out)
        np.multiply(out, scale, out=out)
        return np.add(low, out, out=out)

    def deviate(self, out: Array, log_variance: Array, scale: float, offset: float, noise: Array) -> Array:
        np.multiply(log_variance, scale, out=out)
        np.add(out, offset, out=out)
        np.exp(out, out=out)
        return np.multiply(out, noise, out=out)

    def blend(
        self,
        out: Array,
        x: Array,
        known: tuple[Array, float],
        noise: tuple[Array, float],
        masks: tuple[Array, Array],
    ) -> Array:
        scratch = self._scratch()
        np.multiply(known[0], known[1], out=scratch)
        np.multiply(noise[0], noise[1], out=out)
        np.add(scratch, out, out=scratch)
        np.multiply(scratch, masks[0], out=scratch)
        np.multiply(x, masks[1], out=out)
        return np.add(scratch, out, out=out)

    def contiguous(self, x: Array) -> Array:
        return np.ascontiguousarray(x, dtype=np.float32)

    def channels(self, array: Array, first: int, last: int, out: Array | None = None) -> Array:
        return array[:, first:last]

    def put(self, wide: Array, x: Array) -> None:
        np.copyto(wide[:, : x.shape[1]], x)

    def watch(self, network: str) -> HostWatch:
        return HostWatch(network)

    def _scratch(self) -> Array:
        if not self._kept:
            self._kept.append(np.empty_like(self._like))
        return self._kept[0]


class HostWatch:
    """Looks, and raises, at once."""

    def __init__(self, network: str) -> None:
        self._network = network

    def look(self, step: int, x: Array, prediction: Array) -> None:
        """See `Watch`."""
        try:
            check_finite(self._network, step, x=x)
        except NonFiniteError:
            check_finite(self._network, step, prediction=prediction)
            raise

    def report(self) -> None:
        """See `Watch`."""
