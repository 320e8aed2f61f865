"""Mask blending: keeping a part of a known picture while any sampler fills in the rest."""

from __future__ import annotations

import numpy as np

from ..engines.binding import Array
from ..errors import ParameterError
from .arithmetic import Arithmetic, arithmetic
from .rng import Noise
from .schedule import Schedule

__all__ = ["MaskBlend"]


class MaskBlend:
    """Before each step, x = noised(x0, t) · mask + x · (1 - mask): the mask of Latent Diffusion's samplers.

    Give it to `sample` as ``prepare``. The noise is fresh each time. There is no final paste: the last step may move
    kept pixels a little.

    Arguments:
        x0: The known latent, float32 (B, C, h, w), scaled as the sampler's.
        mask: float32, broadcastable to x0; **1 keeps, 0 fills** (the opposite of Latent Diffusion's inpainting script).
        schedule: The schedule sampled on.
        rng: Source of the noise; the sampler's own, to repeat the original's random stream.
    """

    anywhere = True
    """It works on x wherever x is; see `arithmetic.placed`."""

    def __init__(self, x0: Array, mask: Array, schedule: Schedule, rng: Noise) -> None:
        try:
            np.broadcast_to(mask, x0.shape)
        except ValueError:
            raise ParameterError(
                f"the mask has shape {mask.shape}, the latent {x0.shape}; resize it to the latent's height and width"
            ) from None
        self._x0 = x0
        self._mask = mask
        self._schedule = schedule
        self._rng = rng
        self._math: Arithmetic | None = None
        self._known = self._there = self._rest = self._out = x0

    def __call__(self, x: Array, t: float) -> Array:
        """x with the kept part replaced; the array is overwritten by the next call."""
        if self._math is None or not self._math.fits(x):
            self._math = math = arithmetic(x)
            self._known = math.sent(self._x0)
            mask = np.ascontiguousarray(np.broadcast_to(self._mask, self._x0.shape))
            self._there, self._rest = math.sent(mask), math.sent(1 - mask)
            self._out = math.empty(self._known)
        noise = self._math.staged(self._rng.randn(self._x0.shape))
        known, fresh = (self._known, self._schedule.alpha(t)), (noise, self._schedule.sigma(t))
        return self._math.blend(self._out, x, known, fresh, (self._there, self._rest))
