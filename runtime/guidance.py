"""Guidance: a denoiser around a denoiser. Samplers never learn that it exists."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..engines.binding import Array
from ..errors import BindingError, ParameterError
from .arithmetic import Arithmetic, arithmetic
from .denoiser import Denoiser, Prediction

__all__ = ["ClassifierFree"]


class ClassifierFree:
    """Classifier-free guidance: eps = eps_u + scale (eps_c - eps_u), both halves in one engine call.

    x is doubled into a reused buffer, so the conditions of `denoiser` hold twice the rows of the batch, **the
    unconditional (or negative) ones first**. x0 is combined by the same rule, which is the x0 of the combined
    eps. A scale of 1 gives the conditional prediction to the last bit, at the price of the unneeded half: do
    not wrap at all. ``log_variance`` and ``extra`` are those of the conditional half.

    Arguments:
        denoiser: One whose conditions hold 2 B rows.
        scale: Guidance scale; 1 is no guidance, 0 the unconditional prediction.

    References:
        Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598
        (their w is scale - 1)
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        if not np.isfinite(scale):
            raise ParameterError(f"guidance scale is {scale}, need a finite number; 1 is none, 7.5 is usual for text")
        self._denoiser = denoiser
        self.scale = float(scale)
        self._math: Arithmetic | None = None
        self._doubled = self._eps = self._x0 = np.empty(0, dtype=np.float32)

    @property
    def network(self) -> str:
        """Name of the wrapped network, for messages."""
        return getattr(self._denoiser, "network", "denoiser")

    @property
    def arithmetic(self) -> Arithmetic | None:
        """Where the wrapped denoiser can calculate; see `arithmetic.placed`."""
        return getattr(self._denoiser, "arithmetic", None)

    def __call__(self, x_t: Array, t: float) -> Prediction:
        batch = x_t.shape[0]
        math = self._math
        if math is None or not math.fits(x_t):
            self._math = math = arithmetic(x_t)
            self._doubled = math.empty(x_t, (2 * batch, *x_t.shape[1:]))
            self._eps, self._x0 = math.empty(x_t), math.empty(x_t)
        math.copy(self._doubled[:batch], x_t)
        math.copy(self._doubled[batch:], x_t)
        both = self._denoiser(self._doubled, t)
        if both.eps.shape != self._doubled.shape:
            raise BindingError(
                f"guidance fed {self._doubled.shape} and got a prediction of {both.eps.shape}; "
                "give the wrapped denoiser conditions of twice the batch, unconditional rows first"
            )
        variance = None if both.log_variance is None else both.log_variance[batch:]
        return Prediction(
            self._mix(math, both.eps, batch, self._eps),
            self._mix(math, both.x0, batch, self._x0),
            variance,
            _conditional(both.extra, batch),
        )

    def _mix(self, math: Arithmetic, both: Array, batch: int, out: Array) -> Array:
        if self.scale == 1:
            return both[batch:]
        return math.guide(out, both[:batch], both[batch:], self.scale)


def _conditional(extra: Mapping[str, Array], batch: int) -> Mapping[str, Array]:
    if not extra:
        return extra
    return {name: value[batch:] if value.ndim and len(value) == 2 * batch else value for name, value in extra.items()}
