"""Degradations: what Cold Diffusion puts in the place of noise, D(x0, t) with severity t = 0 … T.

Severity counts applied steps: **D(x0, 0) = x0, exactly**, and D(x0, T) is the worst. The network that undoes
severity t is asked with index t - 1. This t is no timestep of a noise schedule.

References:
    Bansal et al., "Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise", 2022, section 3,
    https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np

from ..engines.binding import Array
from ..errors import ParameterError

__all__ = [
    "Chain",
    "Degradation",
    "Need",
    "Refitting",
    "check_pictures",
    "check_severity",
    "degrade",
    "neighbours",
    "quantise",
    "severities",
]

Need: TypeAlias = Literal["picture", "noise", "colour", "offsets"]
"""What a degradation has to be given besides x0: a second picture, a noise tensor, a colour, crop offsets."""


class Degradation(Protocol):
    """A family of operators D(., t), t = 0 … `steps`; an object holds no state that a call changes."""

    @property
    def steps(self) -> int:
        """T, the largest severity."""
        ...

    @property
    def linear(self) -> bool:
        """Whether D(., t) is linear or affine in the picture, the end colour or second picture being fixed."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether it is the same for every picture: nothing in it was drawn for these pictures."""
        ...

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it was given, or has to be given, besides the picture."""
        ...

    def __call__(self, x0: Array, t: int) -> Array:
        """D(x0, t), float32 (B, C, H, W) in [-1, 1] as `x0`, at severity t = 0 … T."""
        ...


@runtime_checkable
class Refitting(Protocol):
    """A degradation with an unknown part, estimated anew at each step from x_t and the predicted x0."""

    def refit(self, x_t: Array, x0: Array, t: int) -> Degradation:
        """The degradation that takes `x0` exactly to `x_t` at severity `t`."""
        ...


class Chain:
    """A degradation given as its steps: D(x0, t) = step[t-1](… step[0](x0)).

    The families of `degradations` compose their steps ahead instead, so that a severity costs the same for any t; this
    is for one's own steps, of which severity t applies t.

    Arguments:
        operators: T functions from pictures (B, C, H, W) to pictures of that shape.
        linear: Whether all of them are.
    """

    deterministic = True
    needs: tuple[Need, ...] = ()

    def __init__(self, operators: Sequence[Callable[[Array], Array]], *, linear: bool = False) -> None:
        self.operators = tuple(operators)
        self.linear = linear
        self.steps = len(self.operators)

    def __call__(self, x0: Array, t: int) -> Array:
        check_severity(t, self.steps)
        for operator in self.operators[:t]:
            x0 = operator(x0)
        return x0

    def neighbours(self, x0: Array, t: int) -> tuple[Array, Array]:
        """D(x0, t) and D(x0, t-1) from one chain of t steps."""
        check_severity(t, self.steps, least=1)
        before = self(x0, t - 1)
        return self.operators[t - 1](before), before


def neighbours(degradation: Degradation, x0: Array, t: int) -> tuple[Array, Array]:
    """D(x0, t) and D(x0, t-1), t = 1 … T: the two terms of algorithm 2.

    A chain is walked once; a family that composes its steps is called twice, each at the cost of one operator.
    """
    both = getattr(degradation, "neighbours", None)
    if both is not None:
        return cast("tuple[Array, Array]", both(x0, t))
    check_severity(t, degradation.steps, least=1)
    return degradation(x0, t), degradation(x0, t - 1)


def degrade(degradation: Degradation, x0: Array, t: int | None = None, *, quantised: bool = False) -> Array:
    """x_t = D(x0, t): where a restoration of a clean picture starts.

    Arguments:
        degradation: D.
        x0: Clean pictures, float32 (B, C, H, W) in [-1, 1].
        t: Severity 0 … T; T if None.
        quantised: Cut x_t down to 8 bits, as the original's ``discrete`` does for inpainting and in the training of
            blur.

    Returns:
        float32 (B, C, H, W).
    """
    x_t = degradation(check_pictures(x0), check_severity(degradation.steps if t is None else t, degradation.steps))
    return quantise(x_t) if quantised else x_t


def severities(degradation: Degradation, x0: Array, t: Any) -> Array:
    """D with a severity for each picture, as training needs it.

    The cost is that of one batch, or of one for each distinct severity where something was drawn for the pictures.

    Arguments:
        degradation: D.
        x0: float32 (B, C, H, W) in [-1, 1].
        t: Severities (B,), whole numbers 0 … T. The original's training index is t - 1.

    Returns:
        float32 (B, C, H, W).
    """
    times = np.asarray(t)
    if times.shape != x0.shape[:1]:
        raise ParameterError(f"severities have shape {times.shape}, the batch has {x0.shape[0]}; pass one a picture")
    result = np.array(x0, dtype=np.float32)
    for severity in np.unique(times):
        rows = times == severity
        if degradation.deterministic:
            result[rows] = degradation(x0[rows], int(severity))
        else:  # something was drawn for every picture of the batch
            result[rows] = degradation(x0, int(severity))[rows]
    return result


def quantise(x: Array) -> Array:
    """[-1, 1] cut down (not rounded) to multiples of 1/255 of [0, 1], and back; float32."""
    levels = np.trunc((x + np.float32(1)) * np.float32(0.5) * np.float32(255))
    return np.asarray(levels / np.float32(255) * np.float32(2) - np.float32(1), dtype=np.float32)


def check_severity(t: int, steps: int, *, least: int = 0) -> int:
    """`t`, if it is a severity."""
    if not least <= t <= steps or t != int(t):
        raise ParameterError(f"severity is {t}, this degradation has {least} … {steps}; pass one of these")
    return int(t)


def check_pictures(x: Array) -> Array:
    """`x`, if it is float32 (B, C, H, W)."""
    if x.ndim != 4 or x.dtype != np.float32:
        raise ParameterError(f"pictures are {x.dtype} {x.shape}, need float32 (B, C, H, W); add the batch axis, astype")
    return x
