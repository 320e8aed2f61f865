"""DDIM: deterministic at eta 0, ancestral at eta 1, and its own inverse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...errors import ParameterError
from ..schedule import Schedule
from .pairs import pairs
from .rule import OneStep, Rule, Run, terms

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(OneStep):
    """x_s = alpha_s x0 + sqrt(sigma_s² - d²) eps + d noise, d = eta sigma_s/sigma_t sqrt(1 - alpha_t²/alpha_s²).

    Order 1. With eta 0 a step may also go upwards (s > t), which inverts; `step` takes any pair.

    Arguments:
        schedule: The schedule.
        eta: 0 (deterministic) … 1 (as noisy as DDPM). Not the step size of other literature.
        temperature: Factor on the noise.
        final: Where the last step goes: -1 is clean; **0 is what Latent Diffusion does** (``alphas_prev[0] =
            alphas_bar[0]``, diffusers' ``set_alpha_to_one=False``), which leaves a trace of predicted noise in.
        stride: Step to t - stride rather than to the next timestep of the list, as diffusers does with T // steps; the
            two differ for its "trailing" and "linspace" lists unless steps divides T.
        draw_always: Take a noise tensor from the generator at every step, even if eta is 0, as the original code does;
            it only moves the random stream.

    References:
        Song, Meng & Ermon, "Denoising Diffusion Implicit Models", 2020, eq. 12 and 16, https://arxiv.org/abs/2010.02502
    """

    schedule: Schedule
    eta: float = 0.0
    temperature: float = 1.0
    final: float = -1
    stride: int | None = None
    draw_always: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ParameterError(
                f"eta is {self.eta}, DDIM has 0 (deterministic) to 1 (as noisy as DDPM); pass one of these"
            )

    def rule(self, t: float, s: float) -> Rule:
        """The update from t to s."""
        bar_t, bar_s = self.schedule.bar(t), self.schedule.bar(s)
        if s > t and self.eta > 0:
            raise ParameterError(
                f"the step from {t} up to {s} inverts, which eta {self.eta} cannot; use DDIM(schedule)"
            )
        deviation = self.eta * math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)) if self.eta else 0.0
        return Rule(
            t,
            s,
            terms(
                x0=math.sqrt(bar_s),
                eps=math.sqrt(max(1 - bar_s - deviation**2, 0.0)),
                noise=deviation * self.temperature,
            ),
            draws=self.eta > 0 or self.draw_always,
        )

    def plan(self, timesteps: Any) -> Run:
        """A run through a descending list of timesteps, then to ``final``."""
        return Run(self.rule(t, s) for t, s in pairs(timesteps, self.schedule, self.final, stride=self.stride))
