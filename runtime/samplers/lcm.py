"""LCM: multistep consistency sampling; predict the clean picture, noise it to the next level, repeat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...engines.binding import Array
from ...errors import ParameterError
from ..denoiser import Prediction
from ..schedule import Schedule
from .pairs import pairs
from .rule import Rule, Run, terms

__all__ = ["LCM"]

_SIGMA_DATA = 0.5


@dataclass(frozen=True)
class LCM:
    """f = c_skip x_t + c_out x0, x_s = alpha_s f + sigma_s noise; the last f is the picture.

    c_skip = 1/4 / (u² + 1/4), c_out = u / sqrt(u² + 1/4) with u = 10 t. Meant for networks distilled to
    consistency, on ``schedule.timesteps(steps, spacing="lcm")``; no order of convergence is claimed for
    others.

    Arguments:
        schedule: The schedule.
        timestep_scaling: The 10 above.
        temperature: Factor on the noise.

    References:
        Luo et al., "Latent Consistency Models", 2023, algorithm 3, https://arxiv.org/abs/2310.04378
    """

    schedule: Schedule
    timestep_scaling: float = 10.0
    temperature: float = 1.0

    def plan(self, timesteps: Any) -> Run:
        """A run through a descending list of timesteps, then to the clean picture."""
        return Run(self.rule(t, s) for t, s in pairs(timesteps, self.schedule, -1))

    def step(self, x_t: Array, t: float, s: float, prediction: Prediction, noise: Array | None = None) -> Array:
        """x at s from x at t, in a new array; see `Run.step`."""
        return Run([self.rule(t, s)]).step(x_t, t, s, prediction, noise)

    def rule(self, t: float, s: float) -> Rule:
        """The update from t to s."""
        if s > t:
            raise ParameterError(f"consistency sampling goes down, asked from {t} to {s}; use DDIM(schedule) to invert")
        u, variance = self.timestep_scaling * t, _SIGMA_DATA**2
        skip, out = variance / (u**2 + variance), u / (u**2 + variance) ** 0.5
        alpha, sigma = self.schedule.alpha(s), self.schedule.sigma(s)
        return Rule(t, s, terms(x0=alpha * out, x=alpha * skip, noise=sigma * self.temperature), draws=sigma > 0)
