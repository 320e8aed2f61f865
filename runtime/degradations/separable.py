"""Separable chains: linear steps that act on rows and columns alike, composed into one matrix an axis and severity.

A step x -> A x A' with A (n, n) stays of that form when chained, so D(x, t) = P_t x Q_t' with P_t = A_{t-1} … A_0 along
rows and Q_t the same along columns. All P are made once for a picture size (T products, float64, kept as T n² float32:
13 MB for T = 200 at 128 px); then any severity costs two small matrix products a channel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError

__all__ = ["SeparableChain", "gaussian", "kernel_matrix"]


class SeparableChain:
    """D(., t) for t = 0 … `steps`, of steps given as matrices.

    Arguments:
        steps: T.
        operator: (i, n) -> the matrix float64 (n, n) of step i = 0 … T-1 along an axis of n pixels.
        cumulative: Whether steps are chained; otherwise D(x, t) is step t-1 alone.
    """

    def __init__(self, steps: int, operator: Callable[[int, int], Array], *, cumulative: bool = True) -> None:
        self._steps = steps
        self._operator = operator
        self._cumulative = cumulative
        self._matrices: dict[int, Array] = {}

    def matrices(self, n: int) -> Array:
        """float32 (T+1, n, n): what each severity does to an axis of `n` pixels."""
        known = self._matrices.get(n)
        if known is None:
            product: Array = np.eye(n)
            known = np.empty((self._steps + 1, n, n), dtype=np.float32)
            known[0] = product
            for i in range(self._steps):
                step = self._operator(i, n)
                product = step @ product if self._cumulative else step
                known[i + 1] = product
            self._matrices[n] = known
        return known

    def __call__(self, x0: Array, t: int) -> Array:
        rows, columns = self.matrices(x0.shape[-2])[t], self.matrices(x0.shape[-1])[t]
        return np.asarray(np.matmul(np.matmul(rows, x0), columns.T))


def gaussian(size: int, std: float) -> Array:
    """exp(-(i - size//2)² / 2 std²) normalised, float64 (size,)."""
    offsets = np.arange(size, dtype=np.float64) - size // 2
    weights = np.exp(-(offsets**2) / (2.0 * std**2))
    return np.asarray(weights / weights.sum())


def kernel_matrix(kernel: Array, n: int, *, reflect: bool) -> Array:
    """The matrix float64 (n, n) of a correlation with `kernel` (k,), k odd, circular or reflecting at the border."""
    pad = kernel.size // 2
    if reflect and pad >= n:
        raise ParameterError(
            f"a kernel of {kernel.size} pixels reflects {pad} at the border, the picture has {n}; use a larger picture"
        )
    source = np.arange(n)[:, None] + np.arange(-pad, pad + 1)[None, :]
    if reflect:
        source = np.abs(source)
        source = np.where(source >= n, 2 * (n - 1) - source, source)
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], source % n), np.broadcast_to(kernel, source.shape))
    return matrix
