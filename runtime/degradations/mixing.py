"""Mixing with an end picture z: x_t = sqrt(a) x0 + sqrt(1 - a) z, the cosine schedule as the original has it."""

from __future__ import annotations

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError
from ..degradation import Need, check_severity

__all__ = ["Mixing", "cosine_alphas_bar"]


def cosine_alphas_bar(steps: int, s: float = 0.008) -> Array:
    """alphas_bar float64 (T,), entry t-1 for severity t.

    cos² of a line as of Nichol and Dhariwal, but the line is ``linspace(0, T+1, T+1)`` divided by T+1, so it reaches
    the end one step early, and betas are cut at 0.999; the last entry is small, not 0 (8e-3 is its root at T = 6).
    """
    line = np.linspace(0.0, steps + 1, steps + 1) / (steps + 1)
    bar = np.cos((line + s) / (1 + s) * np.pi * 0.5) ** 2
    betas = np.clip(1.0 - bar[1:] / bar[:-1], 0.0, 0.999)
    return np.asarray(np.cumprod(1.0 - betas))


class Mixing:
    """D(x, t) = sqrt(a_t) x + sqrt(1 - a_t) z, D(x, 0) = x.

    Without z it can only be restored from, estimating z anew at each step from x_t and the predicted x0, which makes
    x_t - D(x0, t) vanish: DDIM, if z is noise.

    Arguments:
        steps: T.
        end: z, float32 (B, C, H, W), or None.
    """

    linear = True
    deterministic = False
    needs: tuple[Need, ...] = ("picture",)

    def __init__(self, steps: int, end: Array | None = None) -> None:
        if steps < 1:
            raise ParameterError(f"mixing has {steps} steps; pass 1 or more")
        self.steps = steps
        self.end = end
        self.alphas_bar = cosine_alphas_bar(steps)

    def weights(self, t: int) -> tuple[np.float32, np.float32]:
        """sqrt(a_t) and sqrt(1 - a_t), t = 1 … T."""
        bar = self.alphas_bar[t - 1]
        return np.float32(np.sqrt(bar)), np.float32(np.sqrt(1.0 - bar))

    def __call__(self, x0: Array, t: int) -> Array:
        """D(x0, t)."""
        if check_severity(t, self.steps) == 0:
            return x0
        if self.end is None:
            raise ParameterError(
                f"{type(self).__name__} mixes with an end {self.needs[0]} and none was given; pass end=(B, C, H, W)"
            )
        if self.end.shape != x0.shape:
            raise ParameterError(
                f"the end {self.needs[0]} has shape {self.end.shape}, the pictures {x0.shape}; resize one to the other"
            )
        keep, mix = self.weights(t)
        return np.asarray(keep * x0 + mix * self.end)

    def refit(self, x_t: Array, x0: Array, t: int) -> Mixing:
        """With a known end itself; otherwise with z = (x_t - sqrt(a_t) x0) / sqrt(1 - a_t)."""
        if self.end is not None:
            return self
        keep, mix = self.weights(t)
        return type(self)(self.steps, np.asarray((x_t - keep * x0) / mix))
