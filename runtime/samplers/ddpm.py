"""DDPM: ancestral sampling with fixed or learned variance, on the whole schedule or a part of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from ...engines.binding import Array
from ...errors import ParameterError
from ..denoiser import Prediction
from ..schedule import Schedule
from .pairs import pairs
from .rule import Rule, Run, terms

__all__ = ["DDPM", "Variance"]

Variance: TypeAlias = Literal["small", "large", "learned_range", "learned"]


@dataclass(frozen=True)
class DDPM:
    """x_s = a x0 + b x_t + exp(log-variance / 2) noise, a and b of the posterior q(x_s | x_t, x0).

    Skipped timesteps are respaced as in guided-diffusion: beta is 1 - alphas_bar_t / alphas_bar_s.

    Arguments:
        schedule: The schedule.
        variance: "small" the posterior's; "large" beta; "learned_range" between both in the logarithm, by the network's
            v in [-1, 1] (Dhariwal and Nichol); "learned" the network's log-variance itself.
        temperature: Factor on the noise.
        final: Where the last step goes, -1 for clean.
        draw_always: Take a noise tensor even for the step to the clean picture, which ignores it, as the original does.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239
        Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, eq. 15, https://arxiv.org/abs/2102.09672
    """

    schedule: Schedule
    variance: Variance = "small"
    temperature: float = 1.0
    final: float = -1
    draw_always: bool = False

    def __post_init__(self) -> None:
        if self.variance not in get_args(Variance):
            raise ParameterError(
                f"no variance is named {self.variance!r}, there are {', '.join(get_args(Variance))}; use one of them"
            )

    def plan(self, timesteps: Any) -> Run:
        """A run through a descending list of timesteps, then to ``final``."""
        steps = pairs(timesteps, self.schedule, self.final, strict=True)
        posterior = self.schedule.posterior([t for t, _ in steps], self.final)
        return Run(self._rules(steps, posterior.betas, posterior.log_variance, posterior.x0_coef, posterior.x_coef))

    def step(self, x_t: Array, t: float, s: float, prediction: Prediction, noise: Array | None = None) -> Array:
        """x at s < t from x at t, in a new array; see `Run.step`."""
        return DDPM(self.schedule, self.variance, self.temperature, s).plan([t]).step(x_t, t, s, prediction, noise)

    def log_range(self, timesteps: Any) -> list[tuple[float, float]]:
        """For each step of `plan`, the log-variances that v = -1 and v = +1 stand for."""
        posterior = self.schedule.posterior(timesteps, self.final)
        return [(float(low), math.log(high)) for low, high in zip(posterior.log_variance, posterior.betas, strict=True)]

    def _rules(
        self, steps: list[tuple[float, float]], betas: Array, logs: Array, x0_coef: Array, x_coef: Array
    ) -> list[Rule]:
        rules: list[Rule] = []
        for i, (t, s) in enumerate(steps):
            log_range = None
            weight = self.temperature
            if self.variance == "learned_range":
                log_range = (float(logs[i]), math.log(betas[i]))
            elif self.variance == "learned":
                log_range = (-1.0, 1.0)
            else:
                weight *= math.exp(0.5 * logs[i]) if self.variance == "small" else math.sqrt(betas[i])
            if s == -1:
                weight, log_range = 0.0, None
            rules.append(
                Rule(
                    t,
                    s,
                    terms(x0=x0_coef[i], x=x_coef[i], noise=weight),
                    draws=s != -1 or self.draw_always,
                    log_range=log_range,
                )
            )
        return rules
