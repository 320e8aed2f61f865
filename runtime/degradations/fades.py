"""Fades by scalars and in a spiral: the original's un-exported, naive fading."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError
from ..degradation import Need, check_severity

__all__ = ["ScalarFade", "SpiralFade", "spiral"]


@dataclass(frozen=True)
class ScalarFade:
    """D(x, t) = f_0 … f_{t-1} x with f_i = 1 - rate (i + 1) ("Incremental") or 1 - rate ("Constant").

    Arguments:
        steps: T; "Incremental" turns negative from rate (i + 1) > 1 on, as the original's does.
        rate: The original's ``start_fade_factor``.
        routine: See above.
    """

    steps: int
    rate: float = 0.1
    routine: Literal["Incremental", "Constant"] = "Incremental"

    linear = True
    deterministic = True
    needs: tuple[Need, ...] = field(default=(), init=False, repr=False, compare=False)

    def factors(self) -> Array:
        """f_i, float64 (T,)."""
        rise = np.arange(1, self.steps + 1) if self.routine == "Incremental" else np.ones(self.steps)
        return np.asarray(1.0 - self.rate * rise)

    def __call__(self, x0: Array, t: int) -> Array:
        """D(x0, t)."""
        if check_severity(t, self.steps) == 0:
            return x0
        return np.asarray(x0 * np.float32(np.prod(self.factors()[:t])))


@dataclass(frozen=True)
class SpiralFade:
    """Pixels go out one by one in a spiral from the centre: severity t has lost the first t of `spiral`.

    Arguments:
        steps: T, at most size².
        size: Side of the square picture in pixels; the original has 32.
        colour: What they become, float32 (B, C): the original's "Spiral_2"; grey 0 if None.
    """

    steps: int
    size: int = 32
    colour: Array | None = field(default=None, compare=False)
    _order: Array = field(init=False, repr=False, compare=False)

    linear = True

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.size**2:
            raise ParameterError(f"{self.steps} steps for {self.size**2} pixels; pass 1 to {self.size**2} steps")
        object.__setattr__(self, "_order", spiral(self.size))

    @property
    def deterministic(self) -> bool:
        """Whether it fades to grey."""
        return self.colour is None

    @property
    def needs(self) -> tuple[Need, ...]:
        """A colour, if it fades to one."""
        return () if self.colour is None else ("colour",)

    def mask(self, t: int) -> Array:
        """1 where a pixel is left at severity t, float32 (size, size)."""
        return (self._order >= t).astype(np.float32)

    def __call__(self, x0: Array, t: int) -> Array:
        """D(x0, t)."""
        if check_severity(t, self.steps) == 0:
            return x0
        if x0.shape[-2:] != self._order.shape:
            raise ParameterError(
                f"the picture has {x0.shape[-2:]} pixels, the spiral {self._order.shape}; make its own"
            )
        keep = self.mask(t)
        if self.colour is None:
            return np.asarray(keep * x0)
        return np.asarray(keep * x0 + (np.float32(1) - keep) * self.colour.astype(np.float32)[:, :, None, None])


def spiral(size: int) -> Array:
    """When each pixel goes, int64 (size, size): 0 near the centre, outwards, size² - 1 last."""
    order = np.empty((size, size), dtype=np.int64)
    top, left, bottom, right = 0, 0, size, size
    latest = size * size
    # Inwards from the last: each ring is left by its top edge from the right, its left edge downwards, …
    place = 0
    path = np.empty((size * size, 2), dtype=np.int64)
    while top < bottom and left < right:
        ring = [(top, c) for c in range(right - 1, left - 1, -1)]
        ring += [(r, left) for r in range(top + 1, bottom)]
        if bottom - 1 > top and right - 1 > left:
            ring += [(bottom - 1, c) for c in range(left + 1, right)]
            ring += [(r, right - 1) for r in range(bottom - 2, top, -1)]
        path[place : place + len(ring)] = ring
        place += len(ring)
        top, left, bottom, right = top + 1, left + 1, bottom - 1, right - 1
    order[path[:, 0], path[:, 1]] = latest - 1 - np.arange(latest)
    return order
