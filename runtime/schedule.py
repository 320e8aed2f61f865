"""Schedules: the numbers alpha_t and sigma_t of a diffusion process, and lists of timesteps through it.

Notation: x_t = alpha_t x0 + sigma_t eps with alpha_t = sqrt(alphas_bar[t]) and sigma_t = sqrt(1 -
    alphas_bar[t]).
Times are timestep indices 0 … T-1; **-1 means clean** (alpha 1, sigma 0) and T means pure noise (alpha 0,
sigma 1). Everything here is float64; what reaches an array is cast at use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engines.binding import Array
from ..errors import ParameterError
from . import spacings
from .betas import named_betas
from .spacings import Spacing

if TYPE_CHECKING:
    from ..engines.bundle import Bundle
    from ..engines.manifest import ScheduleSpec

__all__ = ["Posterior", "Schedule", "Spacing"]


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x0) = N(x0_coef x0 + x_coef x_t, variance), one entry a pair (t, s), float64.

    ``betas`` is the forward variance from s to t; ``log_variance`` is clipped as in guided-diffusion: the
    entry that goes to the clean picture, log 0, is replaced by its neighbour.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, eq. 7, https://arxiv.org/abs/2006.11239
    """

    betas: Array
    variance: Array
    log_variance: Array
    x0_coef: Array
    x_coef: Array


class Schedule:
    """A discrete diffusion process in T timesteps.

    Arguments:
        alphas_bar: (T,), cumulative products of 1 - beta, strictly decreasing in (0, 1).
    """

    __slots__ = ("_noise_ratio", "alphas_bar")

    alphas_bar: Array

    def __init__(self, alphas_bar: Any) -> None:
        bar = np.array(alphas_bar, dtype=np.float64)
        if bar.ndim != 1 or not bar.size:
            raise ParameterError(f"alphas_bar has shape {bar.shape}, need one axis (T,); pass one value a timestep")
        if not (np.isfinite(bar).all() and bar[0] < 1 and bar[-1] > 0 and (np.diff(bar) < 0).all()):
            raise ParameterError(
                f"alphas_bar runs from {bar[0]:.6g} to {bar[-1]:.6g} and must fall strictly within (0, 1); "
                "pass cumulative products of 1 - beta with every beta in (0, 1)"
            )
        ratio = np.concatenate([[0.0], np.sqrt((1 - bar) / bar)])
        bar.flags.writeable = ratio.flags.writeable = False
        self.alphas_bar = bar
        self._noise_ratio = ratio

    @classmethod
    def from_betas(cls, betas: Any) -> Schedule:
        """The process with forward variances `betas` (T,), float64, each in (0, 1)."""
        return cls(np.cumprod(1.0 - np.asarray(betas, dtype=np.float64)))

    @classmethod
    def named(cls, name: str, steps: int = 1000, start: float | None = None, end: float | None = None) -> Schedule:
        """A law of the literature; see `betas.named_betas` for names and defaults."""
        return cls.from_betas(named_betas(name, steps, start, end))

    @classmethod
    def from_spec(cls, spec: ScheduleSpec, bundle: Bundle | None = None) -> Schedule:
        """The schedule that a manifest describes; an ``explicit`` one is read from its bundle."""
        if spec.betas != "explicit":
            return cls.named(spec.betas, spec.steps, spec.start, spec.end)
        if bundle is None or spec.alphas_bar is None:
            raise ParameterError("the schedule is explicit and no bundle is given; pass from_spec(spec, bundle)")
        tensors = bundle.tensors(spec.alphas_bar)
        if "alphas_bar" not in tensors or tensors["alphas_bar"].shape != (spec.steps,):
            found = {name: array.shape for name, array in tensors.items()}
            raise ParameterError(
                f"{spec.alphas_bar!r} holds {found}, the manifest promises alphas_bar ({spec.steps},); "
                "export the bundle again"
            )
        return cls(tensors["alphas_bar"])

    def __len__(self) -> int:
        return int(self.alphas_bar.size)

    def __repr__(self) -> str:
        return f"Schedule(T={len(self)}, alphas_bar {self.alphas_bar[0]:.6g} … {self.alphas_bar[-1]:.6g})"

    @property
    def betas(self) -> Array:
        """Forward variances (T,)."""
        return np.asarray(1.0 - self.alphas_bar / np.append(1.0, self.alphas_bar[:-1]))

    def bar(self, t: float) -> float:
        """alphas_bar at t in [-1, T]; between timesteps sigma/alpha runs linearly, as diffusers has it."""
        last = len(self) - 1
        if t == last + 1:
            return 0.0
        if not -1 <= t <= last:
            raise ParameterError(f"timestep {t} lies outside the schedule's -1 … {last}; use schedule.timesteps(steps)")
        if t == -1:
            return 1.0
        if t == int(t):
            return float(self.alphas_bar[int(t)])
        return 1.0 / (1.0 + self.noise_ratio(t) ** 2)

    def alpha(self, t: float) -> float:
        """Coefficient of the clean picture at t."""
        return math.sqrt(self.bar(t))

    def sigma(self, t: float) -> float:
        """Coefficient of the noise at t."""
        return math.sqrt(1.0 - self.bar(t))

    def noise_ratio(self, t: float) -> float:
        """sigma / alpha at t in [-1, T-1]: the "sigma" of k-diffusion and diffusers."""
        last = len(self) - 1
        if not -1 <= t <= last:
            raise ParameterError(f"timestep {t} lies outside the schedule's -1 … {last}; use schedule.timesteps(steps)")
        return float(np.interp(t, np.arange(-1, last + 1), self._noise_ratio))

    def time(self, noise_ratio: float) -> float:
        """The fractional timestep at which sigma / alpha is `noise_ratio`: the inverse of `noise_ratio`."""
        return float(np.interp(noise_ratio, self._noise_ratio, np.arange(-1, len(self))))

    def log_snr(self, t: float) -> float:
        """lambda = log(alpha / sigma) at t; infinite when clean."""
        ratio = self.noise_ratio(t)
        return math.inf if ratio == 0 else -math.log(ratio)

    def noised(self, x0: Array, noise: Array, t: float) -> Array:
        """A sample of q(x_t | x0): alpha_t x0 + sigma_t noise, of x0's shape and dtype."""
        return np.asarray(self.alpha(t) * x0 + self.sigma(t) * noise, dtype=x0.dtype)

    def posterior(self, timesteps: Any, final: float = -1) -> Posterior:
        """Posteriors between neighbours of a descending list; the last entry goes to `final`."""
        times = [float(t) for t in timesteps]
        bar_t = np.array([self.bar(t) for t in times])
        bar_s = np.array([self.bar(s) for s in [*times[1:], final]])
        betas = 1.0 - bar_t / bar_s
        variance = betas * (1.0 - bar_s) / (1.0 - bar_t)
        clipped = np.array(variance)
        if clipped[-1] <= 0:
            clipped[-1] = clipped[-2] if clipped.size > 1 else 1e-20
        return Posterior(
            betas=betas,
            variance=variance,
            log_variance=np.log(np.maximum(clipped, 1e-20)),
            x0_coef=betas * np.sqrt(bar_s) / (1.0 - bar_t),
            x_coef=(1.0 - bar_s) * np.sqrt(1.0 - betas) / (1.0 - bar_t),
        )

    def timesteps(
        self,
        steps: int,
        *,
        spacing: Spacing = "leading",
        offset: int = 1,
        drop_last: int = 0,
        fractional: bool = False,
    ) -> Array:
        """A descending list of timesteps.

        Arguments:
            steps: How many, 1 … T. "official" may give more; see below.
            spacing: "leading" {0, c, 2c …} + offset with c = T // steps; "trailing" from T-1 in equal strides;
                "linspace" from T-1 to 0, both included; "official" Latent Diffusion's list: every c-th index + offset,
                **more than `steps` entries unless `steps` divides T**; "quad" Latent Diffusion's quadratic list, which
                repeats its first entries when `steps` is large; "karras" equal in (sigma/alpha)^(1/7), fractional;
                "lcm" every entry of a 50-step trailing list that a consistency model of `steps` steps uses.
            offset: Added to "leading", "official" and "quad"; the checkpoints of Latent Diffusion were sampled with 1.
            drop_last: "leading" and "linspace" over ``steps + drop_last`` points without the last ones; diffusers takes
                1 for its DPM-Solver and UniPC.
            fractional: Leave "linspace" unrounded, as diffusers does for its Euler and Heun.

        Returns:
            int64 (n,), or float64 (n,) for fractional lists.

        Raises:
            ParameterError: `steps` is not in 1 … T, or the list leaves the schedule.
        """
        total = len(self)
        spacings.check_steps(steps, total)
        if spacing == "karras":
            ratios = spacings.karras(float(self._noise_ratio[-1]), float(self._noise_ratio[1]), steps)
            return np.array([self.time(ratio) for ratio in ratios])
        times = spacings.integer_list(total, steps, spacing, offset, drop_last, fractional)
        if times[0] > total - 1 or times[-1] < 0:
            raise ParameterError(
                f"{spacing!r} spacing with {steps} steps and offset {offset} runs from timestep {times[0]} "
                f"to {times[-1]}, the schedule has 0 … {total - 1}; use fewer steps, offset=0 or spacing='trailing'"
            )
        return times

    def sections(self, respacing: str | Sequence[int]) -> Array:
        """The list of guided-diffusion's ``timestep_respacing``: "25", "ddim25", "10,15,20", "" for all.

        Returns:
            int64 (n,).
        """
        return spacings.sections(len(self), respacing)
