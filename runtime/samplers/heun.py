"""Heun: the trapezoidal corrector of Euler's step; two network calls a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..schedule import Schedule
from .pairs import pairs
from .rule import Remembering, Rule, Run, terms

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun(Remembering):
    """An Euler step to s, a second call there, and the step again with the mean of both slopes. Order 2.

    Not Heun's third-order method, nor Ralston's. The step to the clean picture, where no slope exists, is
    Euler's, so S timesteps cost 2 S - 1 calls.

    Arguments:
        schedule: The schedule.
        final: Where the last step goes, -1 for clean.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, algorithm 1,
        https://arxiv.org/abs/2206.00364
    """

    schedule: Schedule
    final: float = -1

    def plan(self, timesteps: Any) -> Run:
        """A run through a descending list of timesteps, then to ``final``."""
        rules: list[Rule] = []
        for t, s in pairs(timesteps, self.schedule, self.final, strict=True):
            alpha, sigma = self.schedule.alpha(s), self.schedule.sigma(s)
            euler = terms(x0=alpha, eps=sigma)
            if sigma == 0:
                rules.append(Rule(t, s, euler))
                continue
            half = alpha * (self.schedule.noise_ratio(s) - self.schedule.noise_ratio(t)) / 2
            mean = terms(anchor=alpha / self.schedule.alpha(t), past1=half, eps=half)
            rules += [Rule(t, s, euler, anchor=terms(x=1.0), push="eps"), Rule(s, s, mean, opens=False)]
        return Run(rules)
