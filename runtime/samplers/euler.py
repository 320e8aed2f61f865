"""Euler: the plain step of the probability-flow ODE in the noise level sigma / alpha."""

from __future__ import annotations

from dataclasses import dataclass

from ..schedule import Schedule
from .rule import OneStep, Rule, terms

__all__ = ["Euler"]


@dataclass(frozen=True)
class Euler(OneStep):
    """x_s = alpha_s (x0 + k_s eps), k = sigma / alpha. Order 1.

    In these variables it is the same rule as `DDIM` with eta 0: both names are kept because both are asked
    for, and diffusers runs them on different lists ("linspace", fractional, against "leading"). diffusers and
    k-diffusion scale x by 1 / alpha; there a picture starts from ``k · noise``, which here is
    ``schedule.sigma(t) · noise``.

    Arguments:
        schedule: The schedule.
        final: Where the last step goes, -1 for clean.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, algorithm 1 without
        churn, https://arxiv.org/abs/2206.00364
    """

    schedule: Schedule
    final: float = -1

    def rule(self, t: float, s: float) -> Rule:
        """The update from t to s."""
        return Rule(t, s, terms(x0=self.schedule.alpha(s), eps=self.schedule.sigma(s)))
