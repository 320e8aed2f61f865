"""Decolourisation: towards the mean of the channels, in RGB or with Lab pictures.

References:
    Bansal et al., "Cold Diffusion", 2022, appendix A.5, https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError
from ..degradation import Need, check_severity
from .lab import lab_from_rgb, rgb_from_lab

__all__ = ["Decolor"]


@dataclass(frozen=True)
class Decolor:
    """D(x, t) = F x + (1 - F) mean_c x with F = f_0 … f_{t-1}, the mean equally weighted over channels.

    Arguments:
        steps: T.
        routine: "Constant", f_i = `factor`; "Linear", F = 1 - t/T.
        factor: f of "Constant".
        total: f_{T-1} = 0, so that no colour is left; "Linear" leaves 0 up to rounding anyway.
        lab: The pictures are Lab (`lab.lab_from_rgb`), the mean is taken in RGB.
    """

    steps: int
    routine: Literal["Constant", "Linear"] = "Constant"
    factor: float = 0.9
    total: bool = False
    lab: bool = False

    deterministic = True
    needs: tuple[Need, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.routine not in ("Constant", "Linear") or self.steps < 1 or not 0 <= self.factor <= 1:
            raise ParameterError(
                f"decolourisation {self.routine!r} has {self.steps} steps of factor {self.factor}; "
                "use 'Constant' or 'Linear', 1 or more steps, a factor in [0, 1]"
            )

    @property
    def linear(self) -> bool:
        """Whether pictures are RGB."""
        return not self.lab

    def factors(self) -> Array:
        """f_i, float64 (T,): the colour matrix of step i is f I + (1 - f)/C."""
        left = 1.0 - np.arange(self.steps + 1) / self.steps
        factors = np.full(self.steps, self.factor) if self.routine == "Constant" else left[1:] / left[:-1]
        if self.total:
            factors[-1] = 0.0
        return np.asarray(factors)

    def matrix(self, i: int, channels: int = 3) -> Array:
        """The colour matrix of step i = 0 … T-1, float32 (C, C)."""
        f = self.factors()[i]
        return np.asarray(f * np.eye(channels) + (1 - f) / channels, dtype=np.float32)

    def grey(self, x0: Array) -> Array:
        """All colour gone: the original's ``total_forward``, from which its series start."""
        return self._blend(x0, 0.0)

    def __call__(self, x0: Array, t: int) -> Array:
        """D(x0, t)."""
        if check_severity(t, self.steps) == 0:
            return x0
        return self._blend(x0, float(np.prod(self.factors()[:t])))

    def _blend(self, x0: Array, keep: float) -> Array:
        rgb = rgb_from_lab(x0) if self.lab else x0
        mean = rgb.mean(axis=1, keepdims=True)
        result = np.asarray(mean + np.float32(keep) * (rgb - mean))
        return lab_from_rgb(result) if self.lab else result
