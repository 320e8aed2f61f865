"""DDIM inversion: from a picture to the noise that sampling leads back to it.

A step asks the network at one timestep and moves x between two others, and which these are differs between the codes
that are about, so a step is a `Climb` of three numbers. The published codes' lists are `official_climbs` (pix2pix-zero)
and `diffusers_climbs`; `plain_climbs` is DDIM's own formula read upwards.

References:
    Song, Meng & Ermon, "Denoising Diffusion Implicit Models", 2020, eq. 14, https://arxiv.org/abs/2010.02502
    Parmar et al., "Zero-shot Image-to-Image Translation", 2023, section 3.1, https://arxiv.org/abs/2302.03027
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..engines.binding import Array
from ..engines.engine import check_finite
from ..errors import Cancelled, NonFiniteError, ParameterError
from .denoiser import Denoiser, Parametrization, Prediction, PredictionKind
from .sampler import StepInfo
from .schedule import Schedule
from .spacings import check_steps, integer_list

__all__ = ["Climb", "diffusers_climbs", "edit_timesteps", "invert", "official_climbs", "plain_climbs"]


class Climb(NamedTuple):
    """One step upwards.

    Arguments:
        t: Timestep index that the network is asked at.
        begin: Timestep index that x is taken to stand at before the step, -1 when clean; there too the output of a
            network that predicts v or x0 is turned into noise.
        end: Timestep index that x stands at after it.
    """

    t: float
    begin: float
    end: float


def plain_climbs(timesteps: Any) -> list[Climb]:
    """DDIM upwards: asked where x stands, (t_i, t_i, t_i+1) for an ascending list; the clean picture counts as t_0.

    Arguments:
        timesteps: Timestep indices (n,), ascending, two or more.
    """
    times = [float(t) for t in timesteps]
    return [Climb(t, t, s) for t, s in zip(times, times[1:], strict=False)]


def official_climbs(schedule: Schedule, steps: int) -> list[Climb]:
    """The `steps` - 2 climbs of pix2pix-zero's own code.

    Of the list 1, 1 + r, … (r = T // steps) the first and the last are not run. The network is asked at t while x goes
    from t - 1 to t + r - 1: the code indexes its table of alphas_bar one beside the timestep. So the clean latent is
    taken for one at alphas_bar[r], and the result stands at alphas_bar[1 + (steps - 1) r - 1] while sampling begins a
    timestep higher.
    """
    if steps < 3:
        raise ParameterError(f"steps is {steps}, the official inversion leaves two of them out; pass 3 or more")
    times, stride = _leading(schedule, steps)  # of T steps the last would lie outside the schedule, and is left out
    return [Climb(t, t - 1, t + stride - 1) for t in times[1:-1]]


def diffusers_climbs(schedule: Schedule, steps: int) -> list[Climb]:
    """The `steps` climbs of diffusers' ``DDIMInverseScheduler``: asked at t while x goes from t - r to t.

    The first begins at alphas_bar[0], as ``set_alpha_to_one=False`` of Stable Diffusion has it.
    """
    times = edit_timesteps(schedule, steps)
    stride = len(schedule) // steps
    return [Climb(t, max(t - stride, 0), t) for t in times]


def edit_timesteps(schedule: Schedule, steps: int) -> list[int]:
    """The ascending list 1, 1 + r, … (r = T // steps) of pix2pix-zero and diffusers.

    Raises:
        ParameterError: `steps` is not in 1 … T, or the list leaves the schedule: it does for T steps.
    """
    times, _ = _leading(schedule, steps)
    last = len(schedule) - 1
    if times[-1] > last:
        raise ParameterError(
            f"steps is {steps}, and as the first timestep is 1 the last would be {times[-1]}, but the schedule has "
            f"0 … {last}; pass {last} steps or fewer"
        )
    return times


def _leading(schedule: Schedule, steps: int) -> tuple[list[int], int]:
    check_steps(steps, len(schedule))
    times = integer_list(len(schedule), steps, "leading", offset=1, drop_last=0, fractional=False)
    return [int(t) for t in times[::-1]], len(schedule) // steps


def invert(
    denoiser: Denoiser,
    schedule: Schedule,
    x0: Array,
    timesteps: Any,
    *,
    kind: PredictionKind = "eps",
    regularize: Callable[[Array], Array] | None = None,
    on_step: Callable[[StepInfo], Any] | None = None,
) -> Array:
    """Lead a picture up to noise: x <- alpha_end (x - sigma_begin eps) / alpha_begin + sigma_end eps.

    Arguments:
        denoiser: Predicts; without guidance, which inversion does not survive.
        schedule: The schedule.
        x0: Where to start, float32 (B, C, h, w); left unchanged.
        timesteps: `Climb`s, or timestep indices (n,) ascending for `plain_climbs`.
        kind: What the network behind the denoiser outputs. diffusers turns v and x0 into noise at `Climb.begin`, where
            x stands, and not at the t that the network is asked at; so does this.
        regularize: Applied to every predicted noise, e.g. `NoiseRegularizer`.
        on_step: Called after every network call; returning False (not None) stops the run.

    Returns:
        x at the end of the last climb, shape and dtype of `x0`.

    Raises:
        ParameterError: `x0` or the timesteps do not allow the run, or the regularisation diverges.
        NonFiniteError: A step made NaN or infinity; names the network, the step and the tensor.
        Cancelled: `on_step` returned False.
    """
    climbs = _climbs(timesteps)
    if x0.dtype.kind != "f" or x0.itemsize < 4:
        raise ParameterError(f"x0 is {x0.dtype}, inversion works in float32; pass x0.astype(np.float32)")
    network = getattr(denoiser, "network", "denoiser")
    check_finite(network, None, x0=x0)
    resolve = Parametrization(schedule, kind)
    x = x0
    for index, climb in enumerate(climbs):
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found and named below
            prediction = denoiser(x, climb.t)
            noise = _noise(resolve, x, prediction, climb)
            eps = noise if regularize is None else regularize(noise)
            x = _step(schedule, x, eps, climb)
        _check(network, index, x, prediction, eps)
        if on_step is not None:
            info = StepInfo(index, len(climbs), climb.t, climb.end, x, prediction)
            if on_step(info) is False:
                raise Cancelled(f"stopped by on_step after call {index + 1} of {len(climbs)}")
    return x


def _climbs(timesteps: Any) -> list[Climb]:
    items = list(timesteps)
    climbs = items if items and isinstance(items[0], Climb) else plain_climbs(items)
    if not climbs or any(climb.end <= climb.begin for climb in climbs):
        shown = ", ".join(f"{item}" for item in items[:4])
        given = f"{len(items)} timesteps ({shown}{' …' if len(items) > 4 else ''})" if items else "no timestep"
        raise ParameterError(
            f"inversion runs upwards and was given {given}; "
            "pass two or more in ascending order, or the climbs of official_climbs(schedule, steps)"
        )
    return climbs


def _noise(resolve: Parametrization, x: Array, prediction: Prediction, climb: Climb) -> Array:
    """The noise in x, of what was predicted at t, as it is solved where x stands."""
    if resolve.kind == "eps" or climb.begin == climb.t:
        return prediction.eps
    output = prediction.x0
    if resolve.kind == "v":  # back to what the network said
        alpha, sigma = resolve.schedule.alpha(climb.t), resolve.schedule.sigma(climb.t)
        output = np.asarray(alpha * prediction.eps - sigma * prediction.x0)
    return resolve(output, x, climb.begin).eps


def _step(schedule: Schedule, x: Array, eps: Array, climb: Climb) -> Array:
    """One climb, coefficients in float64."""
    begin, end = schedule.bar(climb.begin), schedule.bar(climb.end)
    ratio = math.sqrt(end / begin)
    slope = math.sqrt(1 - end) - ratio * math.sqrt(1 - begin)
    result = np.multiply(x, np.asarray(ratio, dtype=x.dtype))
    result += eps * np.asarray(slope, dtype=x.dtype)
    return np.asarray(result)


def _check(network: str, index: int, x: Array, prediction: Prediction, eps: Array) -> None:
    try:
        check_finite(network, index, x=x)
    except NonFiniteError:
        check_finite(network, index, prediction=prediction.eps)
        if not np.isfinite(eps).all():
            raise ParameterError(
                f"noise regularisation diverges at step {index}: the prediction of {network!r} is finite, and what was "
                "made of it is not; pass regularize=False (--no-regularize), or use a larger picture"
            ) from None
        raise
