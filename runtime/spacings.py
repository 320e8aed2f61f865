"""Spacings: which timesteps of a schedule a sampler visits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ..engines.binding import Array
from ..errors import ParameterError

__all__ = ["Spacing", "check_steps", "integer_list", "karras", "sections", "strength"]

Spacing: TypeAlias = Literal["leading", "trailing", "linspace", "official", "quad", "karras", "lcm"]

_LCM_STEPS = 50
"""Timesteps that latent consistency models were distilled on."""


def check_steps(steps: Any, total: int) -> None:
    """Raise `ParameterError` unless `steps` is a whole number in 1 … total."""
    if isinstance(steps, bool) or not isinstance(steps, Integral):
        raise ParameterError(f"steps is {steps!r}, need a whole number; pass an int from 1 to {total}")
    if not 1 <= int(steps) <= total:
        raise ParameterError(f"steps is {steps}, the schedule has {total} timesteps; pass 1 to {total}")


def integer_list(total: int, steps: int, spacing: str, offset: int, drop_last: int, fractional: bool) -> Array:
    """The descending list of `Schedule.timesteps` for every spacing but "karras"; may leave 0 … total-1."""
    points = steps + drop_last
    if spacing == "leading":
        rising: Array = np.arange(points) * (total // points) + offset
    elif spacing == "linspace":
        rising = np.linspace(0, total - 1, points)
        if fractional:
            return np.ascontiguousarray(rising[drop_last:][::-1])
        rising = np.rint(rising)
    elif spacing == "trailing":
        # Rounding makes the range one longer for some counts, as in diffusers, whose list then ends in -1.
        return np.asarray(np.rint(np.arange(total, 0, -total / steps)[:steps]) - 1, dtype=np.int64)
    elif spacing == "official":
        rising, drop_last = np.arange(0, total, total // steps) + offset, 0
    elif spacing == "quad":
        rising, drop_last = np.trunc(np.linspace(0, math.sqrt(total * 0.8), steps) ** 2) + offset, 0
    elif spacing == "lcm":
        return _lcm(total, steps)
    else:
        raise ParameterError(
            f"no spacing is named {spacing!r}, there are {', '.join(get_args(Spacing))}; use one of them"
        )
    return np.ascontiguousarray(rising[drop_last:][::-1], dtype=np.int64)


def _lcm(total: int, steps: int) -> Array:
    known = min(_LCM_STEPS, total)
    if steps > known:
        raise ParameterError(f"steps is {steps}, consistency models know {known} timesteps; pass 1 to {known}")
    trained = np.arange(known, 0, -1, dtype=np.int64) * (total // known) - 1
    chosen = np.asarray(np.linspace(0, known, steps, endpoint=False), dtype=np.int64)
    return np.asarray(trained[chosen])


def karras(largest: float, smallest: float, steps: int, rho: float = 7.0) -> Array:
    """Noise levels sigma/alpha from `largest` to `smallest`, equal in their rho-th root, float64 (steps,).

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, eq. 5,
        https://arxiv.org/abs/2206.00364
    """
    high, low = largest ** (1 / rho), smallest ** (1 / rho)
    levels: Array = np.power(high + np.linspace(0, 1, steps) * (low - high), rho)
    levels[0] = largest  # the power and its root do not cancel to the last bit
    if steps > 1:
        levels[-1] = smallest
    return levels


def sections(total: int, respacing: str | Sequence[int]) -> Array:
    """guided-diffusion's ``timestep_respacing``, descending, int64.

    Positions inside a section are summed up step by step, not multiplied: for 283 of the counts 2 … 1000 the
    two differ.
    """
    if isinstance(respacing, str):
        if respacing.startswith("ddim"):
            return _strided(total, respacing)
        try:
            counts = [int(part) for part in respacing.split(",")] if respacing else [total]
        except ValueError:
            raise ParameterError(
                f"respacing is {respacing!r}, need counts as in '25' or '10,15,20', or 'ddim25'; write one of these"
            ) from None
    else:
        counts = [int(count) for count in respacing]
    size, extra = divmod(total, len(counts))
    kept: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if not 0 <= count <= length:
            raise ParameterError(f"section {i} of respacing {respacing!r} has {length} timesteps, {count} asked for")
        stride = 1.0 if count <= 1 else (length - 1) / (count - 1)
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    if not kept:
        raise ParameterError(f"respacing {respacing!r} keeps no timestep; ask for 1 or more")
    return np.array(sorted(set(kept), reverse=True), dtype=np.int64)


def _strided(total: int, respacing: str) -> Array:
    digits = respacing[len("ddim") :]
    count = int(digits) if digits.isdigit() else 0
    for stride in range(1, total):
        if len(range(0, total, stride)) == count:
            return np.arange(0, total, stride, dtype=np.int64)[::-1]
    raise ParameterError(
        f"respacing is {respacing!r}, no whole stride through {total} timesteps gives that many; "
        f"try 'ddim{max(1, total // max(1, total // max(count, 1)))}' or '{max(count, 1)}'"
    )


def strength(
    timesteps: Array, amount: float, *, official: bool = False, steps: int | None = None
) -> tuple[float, Array]:
    """Where picture-to-picture starts: the noise level to bring the latent to, and the timesteps from there on.

    Arguments:
        timesteps: Descending list of the whole run.
        amount: Share of the run, above 0 and up to 1.
        official: Stable Diffusion's img2img script: the latent is noised to entry ``t_enc = int(amount · steps)`` of
            the rising list, but sampling starts one entry *below*; an amount of 1 then indexes past the list. Otherwise
            diffusers' rule: both are the same entry.
        steps: The number that was asked for, where an "official" list is longer; by default the list's length.

    Returns:
        The timestep to noise to, and the rest of the list, which is empty when `amount` rounds to no step.
    """
    asked = len(timesteps) if steps is None else steps
    if not 0 < amount <= 1:
        raise ParameterError(
            f"strength is {amount}, need more than 0 and at most 1; 0.75 keeps the layout, 1 only the size"
        )
    count = min(int(asked * amount), len(timesteps))
    if count < 1:
        raise ParameterError(f"strength {amount} of {asked} steps leaves no step to run; use {1 / asked:.3g} or more")
    rest = timesteps[len(timesteps) - count :]
    if not official:
        return float(rest[0]), rest
    if count >= len(timesteps):
        raise ParameterError(
            f"strength {amount} noises to entry {count} of {len(timesteps)} in the official list; "
            "use less, or official=False"
        )
    return float(timesteps[len(timesteps) - count - 1]), rest
