"""Snow: streaks of Hendrycks and Dietterich's corruption, denser with severity.

References:
    Bansal et al., "Cold Diffusion", 2022, appendix A.4, https://arxiv.org/abs/2208.09392
    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError
from ..degradation import Need, check_severity
from .separable import gaussian

__all__ = ["LEVELS", "Snow", "SnowLevel", "clipped_zoom"]


@dataclass(frozen=True)
class SnowLevel:
    """Numbers of a level: the field's mean, deviation and zoom, the streaks' length, and what runs linearly with i."""

    mean: float
    std: float
    zoom: float
    length: int
    threshold: tuple[float, float]
    streak: tuple[float, float]
    brightness: tuple[float, float]


LEVELS = {
    1: SnowLevel(0.1, 0.3, 3.0, 5, (0.7, 0.3), (0.5, 5.0), (0.95, 0.7)),
    2: SnowLevel(0.55, 0.3, 2.5, 11, (1.15, 0.7), (0.05, 12.0), (0.95, 0.55)),
    3: SnowLevel(0.55, 0.3, 2.5, 11, (1.15, 0.7), (0.05, 16.0), (0.95, 0.4)),
    4: SnowLevel(0.55, 0.3, 2.5, 11, (1.15, 0.55), (0.05, 20.0), (0.95, 0.3)),
}


@dataclass(frozen=True)
class Snow:
    """D(x, t) = clip(base + snow + snow turned by 180°) in [0, 1]; it is made from x0 anew, not from D(x, t-1).

    The base is x, or with `brighten` c x + (1 - c) max(x, 1.5 grey + 0.5). Layers come from one random field: below a
    falling threshold it is cut to 0, then streaked along rows or columns.

    Arguments:
        steps: T.
        size: Height and width in pixels. **The field depends on it.**
        level: 1 … 4.
        seed: Of NumPy's legacy generator, which is private here: the global one is left alone. The default is the
            original's fixed snow; give another one for its ``random_snow``.
        brighten: Whiten with severity; the original's switch ``fix_brightness`` is its contrary.
        images: A field of its own for so many pictures (the original's ``single_snow``), a random half of them falling;
            0 for one field for all. Which pictures fall is drawn once, where the original draws it for each layer.
    """

    steps: int
    size: tuple[int, int]
    level: int = 1
    seed: int = 123321
    brighten: bool = True
    images: int = 0
    _layers: Array = field(init=False, repr=False, compare=False)

    linear = False
    needs: tuple[Need, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.level not in LEVELS or self.steps < 1 or self.images < 0 or min(self.size) < 2:
            raise ParameterError(
                f"snow of level {self.level} with {self.steps} steps at {self.size} pixels; "
                "levels are 1 to 4, steps 1 or more, sides 2 or more"
            )
        object.__setattr__(self, "_layers", self._make())

    @property
    def deterministic(self) -> bool:
        """Whether all pictures have the same snow."""
        return self.images == 0

    def layer(self, i: int) -> Array:
        """Snow of step i = 0 … T-1 before it is turned, float32 (1 or `images`, 1, H, W) in [0, 1]."""
        return np.asarray(self._layers[i])

    def schedule(self) -> tuple[Array, Array, Array]:
        """Thresholds, streak deviations in pixels and brightness coefficients, float64 (T,) each."""
        level = LEVELS[self.level]
        threshold, streak, brightness = (
            np.linspace(*ends, self.steps) for ends in (level.threshold, level.streak, level.brightness)
        )
        return threshold, streak, brightness

    def __call__(self, x0: Array, t: int) -> Array:
        """D(x0, t)."""
        if check_severity(t, self.steps) == 0:
            return x0
        if x0.shape[-2:] != self.size:
            raise ParameterError(f"the picture has {x0.shape[-2:]} pixels, the snow {self.size}; make the size's own")
        if self.images and x0.shape[0] != self.images:
            raise ParameterError(f"{self.images} fields of snow for {x0.shape[0]} pictures; set images to the batch")
        base = (x0 + np.float32(1)) / np.float32(2)
        if self.brighten:
            coefficient = np.float32(self.schedule()[2][t - 1])
            if x0.shape[1] not in (1, 3):
                raise ParameterError(f"snow brightens grey or RGB pictures, not {x0.shape[1]} channels; convert them")
            grey = base if x0.shape[1] == 1 else _grey(base)
            white = np.maximum(base, grey * np.float32(1.5) + np.float32(0.5))
            base = coefficient * base + (np.float32(1) - coefficient) * white
        layer = self._layers[t - 1]
        snowy = np.clip(base + (layer + layer[..., ::-1, ::-1]), 0.0, 1.0)
        return np.asarray(snowy * np.float32(2) - np.float32(1))

    def _make(self) -> Array:
        level, random = LEVELS[self.level], np.random.RandomState(self.seed)
        fields = [
            clipped_zoom(random.normal(level.mean, level.std, self.size), level.zoom) for _ in range(self.images or 1)
        ]
        base = np.stack(fields).astype(np.float32)[:, None]
        falls = np.full(len(fields), random.uniform() > 0.5)
        if self.images:
            falls[:] = False
            falls[random.permutation(self.images)[: self.images // 2]] = True
        thresholds, streaks, _ = self.schedule()
        layers = np.empty((self.steps, *base.shape), dtype=np.float32)
        for i in range(self.steps):
            flakes = np.clip(np.where(base < np.float32(thresholds[i]), np.float32(0), base), 0.0, 1.0)
            kernel = gaussian(level.length, streaks[i]).astype(np.float32)
            for axis, rows in ((-2, falls), (-1, ~falls)):
                if rows.any():
                    layers[i, rows] = _streak(flakes[rows], kernel, axis)
        return layers


def clipped_zoom(picture: Array, zoom: float) -> Array:
    """The centre of `picture` (H, W), ceil(side / zoom) pixels, enlarged linearly, corners aligned, cut to (H, W)."""
    for axis in (0, 1):
        side = picture.shape[axis]
        crop = math.ceil(side / zoom)
        first, large = (side - crop) // 2, round(crop * zoom)
        matrix = np.zeros((large, crop))
        source = np.arange(large) * ((crop - 1) / max(large - 1, 1))
        base = np.minimum(source.astype(np.int64), max(crop - 2, 0))
        np.add.at(matrix, (np.arange(large), base), 1 - (source - base))
        np.add.at(matrix, (np.arange(large), np.minimum(base + 1, crop - 1)), source - base)
        trim = (large - side) // 2
        part = np.moveaxis(picture, axis, 0)[first : first + crop]
        picture = np.moveaxis(np.tensordot(matrix[trim : trim + side], part, axes=1), 0, axis)
    return picture


def _streak(x: Array, kernel: Array, axis: int) -> Array:
    """Correlation along `axis` with zeros beyond the border."""
    pad = kernel.size // 2
    widths: Any = [(0, 0)] * x.ndim
    widths[axis] = (pad, pad)
    padded, side = np.pad(x, widths), x.shape[axis]
    result = np.zeros_like(x)
    for offset, weight in enumerate(kernel):
        result += weight * (
            padded[..., offset : offset + side] if axis == -1 else padded[..., offset : offset + side, :]
        )
    return result


def _grey(rgb: Array) -> Array:
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.asarray(np.einsum("c,bchw->bhw", weights, rgb)[:, None])
