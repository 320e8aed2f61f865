"""Restoration: the two sampling algorithms of Cold Diffusion.

References:
    Bansal et al., "Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise", 2022, algorithms 1 and 2 and
    section 3.3, https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ..engines.binding import Array
from ..engines.engine import Engine, check_finite
from ..errors import Cancelled, ParameterError
from .degradation import Degradation, Refitting, check_pictures, check_severity, neighbours

__all__ = ["EngineRestorer", "Restoration", "Restorer", "Stage", "restore"]


class Restorer(Protocol):
    """R: a network that predicts the clean picture."""

    def __call__(self, x: Array, index: int) -> Array:
        """x0 float32 (B, C, H, W) from `x` of that shape at severity ``index + 1``; index 0 … T-1.

        The result may be overwritten by the next call.
        """
        ...


class EngineRestorer:
    """R from an engine with inputs ``x`` and, if it was trained with it, ``t``, and output ``x0``.

    The index is fed from a buffer made at the first call of a batch size; a step allocates nothing here.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._t = np.empty(0, dtype=np.float32) if any(b.name == "t" for b in engine.spec.inputs) else None

    @property
    def network(self) -> str:
        """The engine's name, for messages."""
        return self._engine.spec.name

    def __call__(self, x: Array, index: int) -> Array:
        x = np.ascontiguousarray(x, dtype=np.float32)
        if self._t is None:
            return self._engine(x=x)["x0"]
        if self._t.size != x.shape[0]:
            self._t = np.empty(x.shape[0], dtype=np.float32)
        self._t.fill(index)
        return self._engine(x=x, t=self._t)["x0"]


@dataclass(frozen=True)
class Stage:
    """Where a restoration stands after a network call. **Arrays may be overwritten later unless stages are kept.**

    Arguments:
        t: Severity of `x_t`, T … 1.
        x_t: What the network saw.
        x0: What it predicted.
        x: What follows, at severity t - 1.
    """

    t: int
    x_t: Array
    x0: Array
    x: Array


@dataclass(frozen=True)
class Restoration:
    """A restored batch; all arrays float32 (B, C, H, W), not clipped.

    Arguments:
        x_t: The degraded pictures it started from.
        direct: The network's first prediction: restoration in one step.
        image: The restored pictures.
        stages: Every step, if they were kept.
    """

    x_t: Array
    direct: Array
    image: Array
    stages: tuple[Stage, ...] = ()

    def series(self) -> tuple[list[Array], list[Array]]:
        """The original's ``all_sample``: predictions with the restored picture last, and what the network saw."""
        if not self.stages:
            raise ParameterError("no stages were kept; call restore(…, keep=True)")
        return [stage.x0 for stage in self.stages] + [self.image], [stage.x_t for stage in self.stages]


def restore(
    network: Restorer,
    degradation: Degradation,
    x_t: Array,
    *,
    t: int | None = None,
    algorithm: Literal[1, 2] = 2,
    official: bool = False,
    keep: bool = False,
    on_step: Callable[[Stage], Any] | None = None,
) -> Restoration:
    """Undo a degradation step by step.

    Algorithm 1: x_{t-1} = D(R(x_t), t-1). Algorithm 2: x_{t-1} = x_t - D(R(x_t), t) + D(R(x_t), t-1), which forgives R
    where D is close to linear in t.

    Arguments:
        network: R.
        degradation: D, the one that R was trained on.
        x_t: Degraded pictures float32 (B, C, H, W) in [-1, 1]; see `degradation.degrade`. Left unchanged.
        t: Their severity, 1 … T, or 0, which asks nothing of the network; T if None.
        algorithm: 1 or 2.
        official: The original's numbering for snow and decolourisation, one degradation behind: D is called with
            t - 1 and t - 2 where t and t - 1 are meant. Algorithm 2 then **discards the last network call**.
        keep: Keep all stages.
        on_step: Called after every step; returning False (not None) stops the run.

    Raises:
        ParameterError: The pictures, the severity or the algorithm do not allow the run.
        NonFiniteError: A step made NaN or infinity.
        Cancelled: `on_step` returned False.
    """
    if algorithm not in (1, 2):
        raise ParameterError(f"algorithm is {algorithm!r}; the paper has 1 and 2")
    check_pictures(x_t)
    start = check_severity(degradation.steps if t is None else t, degradation.steps)
    name = str(getattr(network, "network", "restorer"))
    check_finite(name, None, x_t=x_t)
    x, direct, stages = x_t, x_t, list[Stage]()
    for severity in range(start, 0, -1):
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found and named below
            x0 = network(x, severity - 1)
            if x0.shape != x.shape:
                raise ParameterError(f"{name} made {x0.shape} of {x.shape}; use the network of this degradation")
            if keep or severity == start:
                x0 = np.array(x0)
            following = _step(degradation, x, x0, severity, algorithm, official)
        check_finite(name, start - severity, x0=x0, x=following)
        if severity == start:
            direct = x0
        stage = Stage(severity, x, x0, following)
        if keep:
            stages.append(stage)
        x = following
        if on_step is not None and on_step(stage) is False:
            raise Cancelled(f"stopped by on_step after call {start - severity + 1} of {start}")
    return Restoration(x_t, direct, x, tuple(stages))


def _step(degradation: Degradation, x_t: Array, x0: Array, t: int, algorithm: int, official: bool) -> Array:
    """x at severity t - 1, an array of its own."""
    if isinstance(degradation, Refitting):
        degradation = degradation.refit(x_t, x0, t)
    count = t - 1 if official else t
    if algorithm == 1 or count == 0:
        return np.array(degradation(x0, max(count - 1, 0))) if algorithm == 1 else x_t
    at, before = neighbours(degradation, x0, count)
    return np.asarray(x_t - at + before)
