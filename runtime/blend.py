"""Mask blending: keeping a part of a known picture while any sampler fills in the rest."""

from __future__ import annotations

import numpy as np

from ..engines.binding import Array
from ..errors import ParameterError
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

    def __init__(self, x0: Array, mask: Array, schedule: Schedule, rng: Noise) -> None:
        try:
            np.broadcast_to(mask, x0.shape)
        except ValueError:
            raise ParameterError(
                f"the mask has shape {mask.shape}, the latent {x0.shape}; resize it to the latent's height and width"
            ) from None
        self._x0 = x0
        self._mask = mask
        self._rest = 1 - mask
        self._schedule = schedule
        self._rng = rng
        self._known = np.empty_like(x0)
        self._out = np.empty_like(x0)

    def __call__(self, x: Array, t: float) -> Array:
        """x with the kept part replaced; the array is overwritten by the next call."""
        noise = self._rng.randn(self._x0.shape)
        np.multiply(self._x0, self._schedule.alpha(t), out=self._known)
        np.multiply(noise, self._schedule.sigma(t), out=self._out)
        np.add(self._known, self._out, out=self._known)
        np.multiply(self._known, self._mask, out=self._known)
        np.multiply(x, self._rest, out=self._out)
        return np.add(self._known, self._out, out=self._out)
