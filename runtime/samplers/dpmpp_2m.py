"""DPM-Solver++(2M): second-order multistep on the clean picture, in the log signal-to-noise ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..schedule import Schedule
from ..spacings import karras
from .pairs import pairs
from .rule import Remembering, Rule, Run, terms

__all__ = ["DPMSolverPP2M"]


@dataclass(frozen=True)
class DPMSolverPP2M(Remembering):
    """x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) D, D = x0 + (x0 - previous x0) h / (2 previous h).

    h is the rise of lambda = log(alpha / sigma). Order 2; the first step and the one to the clean picture,
    where lambda is infinite, are of order 1. diffusers' ``DPMSolverMultistepScheduler`` with its defaults
    ("dpmsolver++", "midpoint", order 2) and k-diffusion's ``sample_dpmpp_2m``; not the stochastic
    DPM-Solver++ (SDE).

    Arguments:
        schedule: The schedule.
        karras: Put the steps at noise levels equal in their seventh root between the first and last timestep given;
            timesteps become fractional. ``schedule.timesteps(steps, spacing="karras")`` does so over the whole
            schedule.
        final: Where the last step goes, -1 for clean.

    References:
        Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022, algorithm 2,
        https://arxiv.org/abs/2211.01095
    """

    schedule: Schedule
    karras: bool = False
    final: float = -1

    def plan(self, timesteps: Any) -> Run:
        """A run through a strictly descending list of timesteps, then to ``final``."""
        steps = pairs(timesteps, self.schedule, self.final, strict=True)
        if self.karras:
            ends = self.schedule.noise_ratio(steps[0][0]), self.schedule.noise_ratio(steps[-1][0])
            times = [self.schedule.time(level) for level in karras(*ends, len(steps))]
            steps = pairs(times, self.schedule, self.final, strict=True)
        rules: list[Rule] = []
        earlier: float | None = None
        for t, s in steps:
            h = self.schedule.log_snr(s) - self.schedule.log_snr(t)
            weight = -self.schedule.alpha(s) * math.expm1(-h)
            bend = 0.0 if earlier is None or math.isinf(h) else weight * h / (2 * earlier)
            out = terms(x=self.schedule.sigma(s) / self.schedule.sigma(t), x0=weight + bend, past1=-bend)
            rules.append(Rule(t, s, out, push="x0"))
            earlier = h
        return Run(rules)
