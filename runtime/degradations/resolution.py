"""Loss of resolution: a chain of down-sampling and nearest-neighbour up-sampling, no antialiasing.

References:
    Bansal et al., "Cold Diffusion", 2022, section 4.3 (super-resolution), https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError
from ..degradation import Need, check_severity
from .separable import SeparableChain, gaussian, kernel_matrix

__all__ = ["Resolution", "ResolutionRoutine", "resample_matrix"]

ResolutionRoutine: TypeAlias = Literal[
    "Incremental",
    "Incremental_bilinear",
    "Incremental_area",
    "Incremental_bicubic_with_blur",
    "Incremental_bilinear_with_blur",
    "Incremental_area_with_blur",
    "Incremental_factor_2",
    "Incremental_bilinear_factor_2",
    "Incremental_area_factor_2",
]
"""The original's names; those that name no mode are bicubic."""

Mode: TypeAlias = Literal["bicubic", "bilinear", "area", "nearest"]


@dataclass(frozen=True)
class Resolution:
    """Pictures of H - i pixels (step i = 0 … T-1), or of H // 2^(i+1) with ``factor_2``, shown at H again.

    Step 0 of the others is the identity, but for the blur of ``with_blur`` (3 pixels, standard deviation 0.5,
    reflecting, before and after).

    Arguments:
        steps: T; less than the picture's sides, for ``factor_2`` at most log2 of them.
        routine: The original's name.
    """

    steps: int
    routine: ResolutionRoutine = "Incremental"
    _chain: SeparableChain = field(init=False, repr=False, compare=False)

    linear = True
    deterministic = True
    needs: tuple[Need, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = get_args(ResolutionRoutine)
        if self.routine not in names or self.steps < 1:
            raise ParameterError(
                f"no loss of resolution is named {self.routine!r} with {self.steps} steps; use {', '.join(names)}"
            )
        object.__setattr__(self, "_chain", SeparableChain(self.steps, self._matrix))

    def __call__(self, x0: Array, t: int) -> Array:
        """D(x0, t)."""
        return x0 if check_severity(t, self.steps) == 0 else self._chain(x0, t)

    def _matrix(self, i: int, n: int) -> Array:
        small = n // 2 ** (i + 1) if self.routine.endswith("factor_2") else n - i
        if small < 1:
            raise ParameterError(
                f"step {i} of {self.routine!r} leaves {small} of {n} pixels; use a larger picture or fewer steps"
            )
        mode: Mode = "bilinear" if "bilinear" in self.routine else "area" if "area" in self.routine else "bicubic"
        matrix = resample_matrix(small, n, "nearest") @ resample_matrix(n, small, mode)
        if self.routine.endswith("with_blur"):
            blur = kernel_matrix(gaussian(3, 0.5), n, reflect=True)
            matrix = blur @ matrix @ blur
        return matrix


def resample_matrix(n: int, m: int, mode: Mode) -> Array:
    """The matrix float64 (m, n) of torch's ``interpolate`` from n to m pixels, corners not aligned, no antialiasing.

    "bicubic" has a = -0.75, "nearest" is torch's "nearest-exact".
    """
    matrix = np.zeros((m, n))
    rows = np.arange(m)
    if mode == "area":
        for row in rows:
            first, last = row * n // m, -(-(row + 1) * n // m)
            matrix[row, first:last] = 1.0 / (last - first)
        return matrix
    centre = (rows + 0.5) * (n / m)
    if mode == "nearest":
        matrix[rows, np.minimum(centre.astype(np.int64), n - 1)] = 1.0
        return matrix
    source = centre - 0.5
    if mode == "bilinear":
        source = np.maximum(source, 0.0)
    base = np.floor(source)
    for offset in (0, 1) if mode == "bilinear" else (-1, 0, 1, 2):
        distance = np.abs(source - base - offset)
        weight = 1.0 - distance if mode == "bilinear" else _cubic(distance)
        np.add.at(matrix, (rows, np.clip(base + offset, 0, n - 1).astype(np.int64)), weight)
    return matrix


def _cubic(d: Array, a: float = -0.75) -> Array:
    """Keys' cubic convolution kernel at distances 0 … 2."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, far)
