"""PLMS: pseudo linear multistep, Adams-Bashforth on the noise with DDIM as its Euler step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..schedule import Schedule
from .pairs import pairs
from .rule import Remembering, Rule, Run, terms

__all__ = ["PLMS"]

_ADAMS_BASHFORTH = {
    1: (3 / 2, -1 / 2),
    2: (23 / 12, -16 / 12, 5 / 12),
    3: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True)
class PLMS(Remembering):
    """x_s = r x_t + (sigma_s - r sigma_t) e', r = alpha_s / alpha_t, e' extrapolated from up to four eps.

    Order 2: the four-term weights are those of equal steps, which the noise level does not take. The first
    step calls the network twice (an improved Euler step), so S steps cost S + 1 calls; with a single timestep
    both calls are made there. Also known as PNDM without Runge-Kutta warm-up. Not a solver for other
    parametrisations: eps is extrapolated.

    Arguments:
        schedule: The schedule.
        final: Where the last step goes: -1 is clean, 0 is what Latent Diffusion and Stable Diffusion do.
        stride: Step to t - stride rather than to the next timestep, as diffusers' PNDM does with T // steps.
        draw_always: Take an unused noise tensor at every call, as the original code does.

    References:
        Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, https://arxiv.org/abs/2202.09778
    """

    schedule: Schedule
    final: float = -1
    stride: int | None = None
    draw_always: bool = False

    def plan(self, timesteps: Any) -> Run:
        """A run through a descending list of timesteps, then to ``final``."""
        steps = pairs(timesteps, self.schedule, self.final, stride=self.stride)
        (t, s), rest = steps[0], steps[1:]
        again = rest[0][0] if rest else t
        x, eps = self._weights(t, s)
        rules = [
            Rule(t, s, terms(x=x, eps=eps), anchor=terms(x=1.0), push="eps", draws=self.draw_always),
            Rule(again, s, terms(anchor=x, eps=eps / 2, past1=eps / 2), draws=self.draw_always, opens=False),
        ]
        for i, (t, s) in enumerate(rest, 1):
            x, eps = self._weights(t, s)
            now, *past = (eps * weight for weight in _ADAMS_BASHFORTH[min(i, 3)])
            earlier = {f"past{k}": weight for k, weight in enumerate(past, 1)}
            rules.append(Rule(t, s, terms(x=x, eps=now, **earlier), push="eps", draws=self.draw_always))
        return Run(rules)

    def _weights(self, t: float, s: float) -> tuple[float, float]:
        """Weights of x_t and eps in the DDIM step from t to s."""
        ratio = math.sqrt(self.schedule.bar(s) / self.schedule.bar(t))
        return ratio, self.schedule.sigma(s) - self.schedule.sigma(t) * ratio
