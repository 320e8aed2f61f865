"""Euler ancestral: an Euler step below the target noise level, then fresh noise up to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import ParameterError
from ..schedule import Schedule
from .rule import OneStep, Rule, terms

__all__ = ["EulerAncestral"]


@dataclass(frozen=True)
class EulerAncestral(OneStep):
    """x_s = alpha_s (x0 + down eps + up noise), up² + down² = k_s².

    up = eta min(k_s, k_s sqrt(k_t² - k_s²) / k_t), k = sigma / alpha. With eta 1 it has the law of `DDIM` with eta 1.

    Arguments:
        schedule: The schedule.
        eta: 0 (Euler) … 1.
        temperature: Factor on the noise.
        final: Where the last step goes, -1 for clean.

    References:
        K. Crowson, k-diffusion, ``sample_euler_ancestral``, https://github.com/crowsonkb/k-diffusion
    """

    schedule: Schedule
    eta: float = 1.0
    temperature: float = 1.0
    final: float = -1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ParameterError(f"eta is {self.eta}, need 0 (no noise) to 1; pass one of these")

    def rule(self, t: float, s: float) -> Rule:
        """The update from t to s < t."""
        k_t, k_s, alpha = self.schedule.noise_ratio(t), self.schedule.noise_ratio(s), self.schedule.alpha(s)
        if s > t:
            raise ParameterError(f"ancestral sampling goes down, asked from {t} to {s}; use DDIM(schedule) to invert")
        up = self.eta * min(k_s, k_s * math.sqrt(k_t**2 - k_s**2) / k_t)
        down = math.sqrt(max(k_s**2 - up**2, 0.0))
        return Rule(
            t,
            s,
            terms(x0=alpha, eps=alpha * down, noise=alpha * up * self.temperature),
            draws=k_s > 0 and self.eta > 0,
        )
