"""Pairs: a list of timesteps, checked, as the steps (t, s) between them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError
from ..schedule import Schedule

__all__ = ["pairs", "plain"]


def pairs(
    timesteps: Any, schedule: Schedule, final: float, *, strict: bool = False, stride: int | None = None
) -> list[tuple[float, float]]:
    """(t, s) for neighbours of a descending list, the last s being `final`.

    Arguments:
        timesteps: Indices within the schedule, descending; repeats are allowed unless `strict`.
        schedule: The schedule.
        final: Where the last step goes, -1 for clean.
        strict: Refuse repeats, on which multistep formulas divide by zero.
        stride: Go to t - stride instead of the next entry (diffusers' DDIM and PNDM do, with T // steps), and to
            `final` once that falls below 0.

    Raises:
        ParameterError: The list is empty, not one-dimensional, leaves the schedule or does not descend.
    """
    times = np.asarray(timesteps)
    if times.ndim != 1 or not times.size:
        raise ParameterError(
            f"timesteps has shape {times.shape}, need a list of 1 or more; use schedule.timesteps(steps)"
        )
    if times.dtype.kind not in "iuf" or not (0 <= times.min() and times.max() <= len(schedule) - 1):
        raise ParameterError(
            f"timesteps run from {times[0]} to {times[-1]}, the schedule has 0 … {len(schedule) - 1}; "
            "use schedule.timesteps(steps)"
        )
    drops = np.diff(times)
    if (drops > 0).any() or (strict and (drops == 0).any()):
        raise ParameterError(
            f"timesteps must fall {'strictly ' if strict else ''}from noise to picture, {_rise(times, strict)}; "
            "use schedule.timesteps(steps)"
        )
    visited = [plain(t) for t in times]
    if stride is not None:
        return [(t, t - stride if t - stride >= 0 else final) for t in visited]
    if final > visited[-1] or (strict and final == visited[-1]):
        raise ParameterError(f"the last step goes from {visited[-1]} to {final}, which is not below; pass final=-1")
    return list(zip(visited, [*visited[1:], final], strict=True))


def plain(t: Any) -> float:
    """t as a Python number, an int where it is whole."""
    value = float(t)
    return int(value) if value == math.floor(value) else value


def _rise(times: Array, strict: bool) -> str:
    drops = np.diff(times)
    i = int(np.argmax(drops >= 0 if strict else drops > 0))
    return f"but entry {i} is {times[i]} and entry {i + 1} is {times[i + 1]}"
