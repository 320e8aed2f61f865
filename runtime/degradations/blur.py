"""Gaussian blur: a chain of depthwise convolutions, each routine of the original.

References:
    Bansal et al., "Cold Diffusion", 2022, section 4.1 and appendix A.1 (deblurring), 5.1 (generation),
    https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError
from ..degradation import Need, check_severity
from .separable import SeparableChain, gaussian, kernel_matrix

__all__ = ["Blur", "BlurRoutine"]

BlurRoutine: TypeAlias = Literal[
    "Incremental",
    "Constant",
    "Constant_reflect",
    "Exponential",
    "Exponential_reflect",
    "Individual_Incremental",
    "Special_6_routine",
    "Linear_Accum_Std",
    "Linear_Dec_Std",
]
"""The original's names. The two "Linear" ones aim at a standard deviation `target` of the whole chain."""


@dataclass(frozen=True)
class Blur:
    """Blur that grows with severity; one axis of step i is a Gaussian of `size` (k) and standard deviation:

    ====================== ==================== ========= =====================================
    routine                std of step i        k         border
    ====================== ==================== ========= =====================================
    Incremental            std (i+1)            size      circular
    Constant[_reflect]     std                  size      circular or reflecting
    Exponential[_reflect]  exp(std i)           size      circular or reflecting
    Individual_Incremental 2 k                  2 i + 1   circular; **not chained: one kernel**
    Special_6_routine      i/100 + 0.35         11        reflecting
    Linear_Accum_Std       sqrt(s_i² - s_i-1²)  by std    circular; s linear `start` … `target`
    Linear_Dec_Std         falling, norm target by std    circular
    ====================== ==================== ========= =====================================

    Arguments:
        steps: T.
        routine: See above.
        size: Kernel size in pixels, odd.
        std: Standard deviation in pixels, or its rate.
        start: First standard deviation of the "Linear" routines.
        target: Standard deviation of their whole chain.
        discrete: Replace severity T by the mean of each channel, for cold generation.
    """

    steps: int
    routine: BlurRoutine = "Incremental"
    size: int = 3
    std: float = 0.1
    start: float = 0.01
    target: float = 1.0
    discrete: bool = False
    _chain: SeparableChain = field(init=False, repr=False, compare=False)

    linear = True
    deterministic = True
    needs: tuple[Need, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.routine not in get_args(BlurRoutine):
            raise ParameterError(f"no blur is named {self.routine!r}; use one of {', '.join(get_args(BlurRoutine))}")
        if self.steps < 1 or self.size < 1 or self.size % 2 == 0:
            raise ParameterError(f"blur has {self.steps} steps of size {self.size}; pass 1 or more steps, an odd size")
        widths = self._widths()
        if not all(s > 0 and math.isfinite(s) for s in widths):
            raise ParameterError(f"blur has standard deviations {min(widths):g} … {max(widths):g}; pass a positive std")
        chain = SeparableChain(self.steps, self._matrix, cumulative=self.routine != "Individual_Incremental")
        object.__setattr__(self, "_chain", chain)

    def __call__(self, x0: Array, t: int) -> Array:
        """D(x0, t)."""
        if check_severity(t, self.steps) == 0:
            return x0
        if self.discrete and t == self.steps:
            # Circular blur keeps the mean; reflecting blur does not, so the chain is walked all the same.
            mean = self._chain(x0, t).mean(axis=(-2, -1), keepdims=True)
            return np.array(np.broadcast_to(mean, x0.shape))
        return self._chain(x0, t)

    def kernel(self, i: int) -> Array:
        """The kernel of step i = 0 … T-1 along an axis, float64 (k,)."""
        std = self._widths()[i]
        match self.routine:
            case "Individual_Incremental":
                return gaussian(2 * i + 1, std)
            case "Special_6_routine":
                return gaussian(11, std)
            case "Linear_Accum_Std" | "Linear_Dec_Std":
                return gaussian(2 * int(2 * std) + 3, std)
            case _:
                return gaussian(self.size, std)

    def kernels(self) -> tuple[Array, ...]:
        """The T kernels as checkpoints keep them, float32 (k, k) each."""
        axes = (self.kernel(i) for i in range(self.steps))
        return tuple(np.outer(axis, axis).astype(np.float32) for axis in axes)

    def _matrix(self, i: int, n: int) -> Array:
        return kernel_matrix(
            self.kernel(i), n, reflect=self.routine.endswith("_reflect") or self.routine == "Special_6_routine"
        )

    def _widths(self) -> list[float]:
        """Standard deviations of the T steps."""
        steps = range(self.steps)
        match self.routine:
            case "Incremental":
                return [self.std * (i + 1) for i in steps]
            case "Constant" | "Constant_reflect":
                return [self.std] * self.steps
            case "Exponential" | "Exponential_reflect":
                return [math.exp(self.std * i) for i in steps]
            case "Individual_Incremental":
                return [2.0 * (2 * i + 1) for i in steps]
            case "Special_6_routine":
                return [i / 100 + 0.35 for i in steps]
            case "Linear_Accum_Std":
                reached = np.linspace(self.start, self.target, self.steps)
                return [float(s) for s in np.sqrt(np.diff(reached**2, prepend=0.0))]
            case "Linear_Dec_Std":
                falling = np.linspace(1.0, self.start, self.steps)
                return [float(s) for s in falling * (self.target / np.sqrt((falling**2).sum()))]
