"""Where the sampling of latent diffusion starts: from noise, from a picture, around a hole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError
from ..blend import MaskBlend
from ..spacings import strength as start_at
from .first_stage import Encoding
from .latent_call import Start
from .latent_models import Models
from .latent_run import Plan, RunNoise

__all__ = ["Begin", "Posterior", "around_hole", "begin_at", "from_noise", "from_picture"]

Begin: TypeAlias = Callable[[RunNoise, range], Start]
"""The start of a batch, given its noise and the numbers of its pictures."""

Posterior: TypeAlias = Literal["sample", "mode"]


def begin_at(plan: Plan, strength: float) -> tuple[float, Array]:
    """The timestep to noise a known latent to, and the timesteps to run from there; checks `strength`."""
    if isinstance(strength, bool) or not isinstance(strength, (int, float, np.number)):
        raise ParameterError(f"strength is {strength!r}, need a number above 0 and up to 1; pass such a one")
    return start_at(plan.timesteps, float(strength), official=plan.official, steps=plan.steps)


def from_noise(models: Models, plan: Plan, grid: tuple[int, ...]) -> Begin:
    """Sampling from standard normals on a grid of latents (h, w)."""

    def begin(noise: RunNoise, rows: range) -> Start:
        x = noise.randn((len(rows), models.settings.latent_channels, *grid))
        return Start(x if plan.start == 1 else x * np.float32(plan.start), plan.timesteps)

    return begin


def from_picture(models: Models, plan: Plan, code: Encoding, strength: float, posterior: str) -> Begin:
    """Sampling from a noised picture: x = alpha x0 + sigma eps, x0 from the encoder's posterior.

    Normals are drawn in diffusers' order: those of the posterior first (once for all pictures of one seed, or with
    ``official`` for each of them), then those of x.
    """
    if posterior not in get_args(Posterior):
        raise ParameterError(f"posterior is {posterior!r}, need 'sample' or 'mode'; pass one of these")
    noise_at, timesteps = begin_at(plan, strength)
    sampled = posterior == "sample" and code.deviation is not None

    def begin(noise: RunNoise, rows: range) -> Start:
        shape = (len(rows), *code.mean.shape[1:])
        if sampled:
            x0 = code.latents(noise.randn(shape) if plan.official else noise.shared(shape))
        else:
            x0 = np.tile(code.latents(), (len(rows), 1, 1, 1))
        return Start(models.schedule.noised(x0, noise.randn(shape), noise_at), timesteps)

    return begin


def around_hole(models: Models, plan: Plan, known: Array, keep: Array, strength: float) -> Begin:
    """Sampling with the known part put back before every step.

    Arguments:
        models: The bundle.
        plan: The options.
        known: float32 (1, C, h, w), the picture's latents.
        keep: float32 (1, 1, h, w), 1 = known.
        strength: 1 starts from noise, less from the noised picture.
    """
    noise_at, timesteps = (None, plan.timesteps) if strength == 1 else begin_at(plan, strength)

    def begin(noise: RunNoise, rows: range) -> Start:
        x0 = np.tile(known, (len(rows), 1, 1, 1))
        x = noise.randn(x0.shape)
        if noise_at is not None:
            x = models.schedule.noised(x0, x, noise_at)
        elif plan.start != 1:
            x *= np.float32(plan.start)
        # Latent Diffusion leaves the last step's drift in the known part; by default it is put back once more.
        finish = None if plan.official else (lambda latents: np.where(keep > 0, x0, latents))
        return Start(x, timesteps, MaskBlend(x0, keep, models.schedule, noise), finish)

    return begin
