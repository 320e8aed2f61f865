"""Projections: denoisers around a denoiser that move its clean picture onto what pictures can be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..engines.binding import Array
from .denoiser import Denoiser, Prediction, solve
from .schedule import Schedule

__all__ = ["ClipX0", "QuantizeX0"]


class ClipX0:
    """Clamps x0 and derives eps anew from it, as guided-diffusion's ``clip_denoised`` does.

    Arguments:
        denoiser: The one that predicts.
        schedule: Its schedule.
        low: Least value of x0.
        high: Largest value of x0.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, low: float = -1.0, high: float = 1.0) -> None:
        self._denoiser = denoiser
        self._schedule = schedule
        self._range = (low, high)
        self._buffers: tuple[Array, Array] | None = None

    @property
    def network(self) -> str:
        """Name of the wrapped network, for messages."""
        return getattr(self._denoiser, "network", "denoiser")

    def __call__(self, x_t: Array, t: float) -> Prediction:
        raw = self._denoiser(x_t, t)
        if self._buffers is None or self._buffers[0].shape != x_t.shape:
            self._buffers = (np.empty_like(x_t), np.empty_like(x_t))
        x0, eps = self._buffers
        np.minimum(np.maximum(raw.x0, self._range[0], out=x0), self._range[1], out=x0)
        solve(eps, x_t, self._schedule.alpha(t), x0, self._schedule.sigma(t), t)
        return Prediction(eps, x0, raw.log_variance, raw.extra)


class QuantizeX0:
    """Replaces x0 by ``quantize(x0)`` and leaves eps as it is: Latent Diffusion's ``quantize_x0``.

    It acts on samplers that step from x0: DDPM, DDIM, Euler, DPM-Solver++, UniPC, LCM.

    Arguments:
        denoiser: The one that predicts.
        quantize: float32 (B, C, H, W) -> the same; the nearest codes of a vector-quantised first stage.
    """

    def __init__(self, denoiser: Denoiser, quantize: Callable[[Array], Array]) -> None:
        self._denoiser = denoiser
        self._quantize = quantize

    @property
    def network(self) -> str:
        """Name of the wrapped network, for messages."""
        return getattr(self._denoiser, "network", "denoiser")

    def __call__(self, x_t: Array, t: float) -> Prediction:
        raw = self._denoiser(x_t, t)
        return Prediction(raw.eps, self._quantize(raw.x0), raw.log_variance, raw.extra)
