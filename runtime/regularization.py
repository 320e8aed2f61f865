"""Noise regularisation: predicted noise is made white and standard while a picture is inverted.

Losses and gradients in closed form, so that no library of automatic differentiation is needed.

References:
    Parmar, Singh, Zhang, Li, Lu, Zhu, "Zero-shot Image-to-Image Translation" (pix2pix-zero), 2023, section 3.1, eq. 3,
    https://arxiv.org/abs/2302.03027
    Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020, appendix D (the pyramid of
    auto-correlations), https://arxiv.org/abs/1912.04958
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ..engines.binding import Array
from ..errors import ParameterError
from .rng import TorchGenerator

__all__ = ["NoiseRegularizer", "Shift", "auto_correlation", "kl_divergence", "random_shifts", "torch_shifts"]

Shift: TypeAlias = Callable[[int], int]
"""Draws a circular shift for a level of this height."""

_FLOOR = 1e-7
"""Added to the variance under the logarithm."""

_COARSEST = 8
"""The pyramid ends at the first level of this height or less."""

_DIVERGED = 10.0
"""How many times as large as before, or as standard noise, regularised noise may be: it is to become standard."""


def random_shifts(seed: int) -> Shift:
    """Shifts 1 … height/2 - 1 as the authors draw them: ``random.seed(seed); random.randrange(1, height // 2)``."""
    generator = random.Random(seed)
    return lambda height: generator.randrange(1, height // 2)


def torch_shifts(seed: int) -> Shift:
    """Shifts **0** … height/2 - 1 as diffusers draws them: ``torch.randint(height // 2, (1,), generator=…)``.

    A shift of 0 pulls the mean square of the noise to zero; the authors had it until September 2024.
    """
    generator = TorchGenerator(seed)
    return lambda height: int(generator.randint(0, height // 2, 1)[0])


def auto_correlation(noise: Array, shift: Shift) -> tuple[float, Array]:
    """L_ac: squared mean products of the noise with itself, shifted, over a pyramid of 2x2 means, and its gradient.

    With eta of H_k rows and a shift s at each level and channel:
    L += mean(eta roll(eta, s, rows))² + mean(eta roll(eta, s, columns))².

    Arguments:
        noise: (1, C, h, w), h of 4 or more, w of 2 or more. The height alone says how often both are halved, and w must
            not reach 0 by that: 64 rows need 8 columns.
        shift: Draws the shift of a level, in the order channel by channel, level by level; one for both axes.

    Returns:
        The loss, and its gradient (1, C, h, w) of noise's type.
    """
    _check(noise)
    gradient = np.empty_like(noise)
    loss = 0.0
    for channel in range(noise.shape[1]):
        levels: list[Array] = []  # gradients by the levels alone
        shapes: list[tuple[int, int]] = []
        eta = noise[0, channel]
        while True:
            value, own = _level(eta, shift(eta.shape[0]))
            loss += value
            levels.append(own)
            shapes.append((eta.shape[0], eta.shape[1]))
            if eta.shape[0] <= _COARSEST:
                break
            eta = _pool(eta)
        total = levels.pop()
        while levels:
            shapes.pop()
            total = levels.pop() + _unpool(total, shapes[-1])
        gradient[0, channel] = total
    return loss, gradient


def kl_divergence(noise: Array) -> tuple[float, Array]:
    """L_kl = v + mu² - 1 - log(v + 1e-7) with mean mu and unbiased variance v of all of `noise`, and its gradient.

    It is twice the divergence of N(mu, v) from N(0, 1).
    """
    size = noise.size
    if size < 2:
        raise ParameterError(f"noise has shape {noise.shape}, a variance needs two values; use a larger picture")
    mean = float(noise.mean(dtype=np.float64))
    centred = noise - np.asarray(mean, dtype=noise.dtype)
    variance = float(np.square(centred, dtype=np.float64).sum()) / (size - 1)
    loss = variance + mean * mean - 1 - float(np.log(variance + _FLOOR))  # a power would raise where this is infinite
    slope = (1 - 1 / (variance + _FLOOR)) * 2 / (size - 1)
    gradient = centred * np.asarray(slope, dtype=noise.dtype)
    gradient += np.asarray(2 * mean / size, dtype=noise.dtype)
    return loss, gradient


class NoiseRegularizer:
    """Plain gradient steps on L_ac and L_kl: `outer` times, `rolls` steps on L_ac with fresh shifts, one on L_kl.

    Arguments:
        shift: Draws shifts; by default `random_shifts(0)`.
        ac: lambda_ac; each of the `rolls` steps has length lambda_ac / rolls. 0 leaves the term out.
        kl: lambda_kl; 0 leaves the term out.
        outer: How often.
        rolls: Steps on L_ac in each.
    """

    def __init__(
        self, shift: Shift | None = None, *, ac: float = 20.0, kl: float = 20.0, outer: int = 5, rolls: int = 5
    ) -> None:
        if not (0 <= ac < np.inf and 0 <= kl < np.inf) or outer < 1 or rolls < 1:
            raise ParameterError(
                f"noise regularisation has ac {ac}, kl {kl}, outer {outer}, rolls {rolls}; "
                "need finite weights of 0 or more and counts of 1 or more"
            )
        self.ac, self.kl, self.outer, self.rolls = float(ac), float(kl), int(outer), int(rolls)
        self._shift = random_shifts(0) if shift is None else shift

    def __call__(self, noise: Array) -> Array:
        """The regularised noise, (1, C, h, w); `noise` is left unchanged.

        Raises:
            ParameterError: The shape does not allow it, or the steps lead away from standard noise.
        """
        result = np.array(noise)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found and named below
            self._descend(result)
            before, after = _length(noise), _length(result)
        if np.isfinite(before) and not after <= _DIVERGED * max(1.0, before):
            raise ParameterError(
                f"noise regularisation diverges: with ac {self.ac:g} and kl {self.kl:g} the values of noise of shape "
                f"{noise.shape} grow from {before:.3g} to {after:.3g} in the root mean square; pass regularize=False "
                "(--no-regularize), or use a larger picture"
            )
        return result

    def _descend(self, result: Array) -> None:
        """All gradient steps, in place."""
        for _ in range(self.outer):
            if self.ac:
                for _ in range(self.rolls):
                    _, gradient = auto_correlation(result, self._shift)
                    gradient *= np.asarray(self.ac / self.rolls, dtype=result.dtype)
                    result -= gradient
            if self.kl:
                _, gradient = kl_divergence(result)
                gradient *= np.asarray(self.kl, dtype=result.dtype)
                result -= gradient


def _length(noise: Array) -> float:
    """The root of the mean square, 1 for standard noise."""
    return float(np.sqrt(np.square(noise, dtype=np.float64).mean()))


def _check(noise: Array) -> None:
    if noise.ndim != 4 or noise.shape[0] != 1:
        raise ParameterError(
            f"noise has shape {noise.shape}, regularisation takes one picture, (1, C, h, w); invert them one by one"
        )
    if noise.shape[2] < 4 or noise.shape[3] < 2:
        raise ParameterError(
            f"noise has {noise.shape[2]} rows and {noise.shape[3]} columns, the auto-correlation needs 4 and 2; "
            "use a larger picture, or ac=0"
        )
    height, width = noise.shape[2:]
    while height > _COARSEST:
        height, width = height // 2, width // 2
    if width < 1:
        raise ParameterError(
            f"noise has {noise.shape[2]} rows and {noise.shape[3]} columns; halved until {_COARSEST} rows or fewer are "
            "left, as the auto-correlation takes it, no column is; use a wider picture, or pass regularize=False "
            "(--no-regularize)"
        )


def _level(eta: Array, shift: int) -> tuple[float, Array]:
    """Both terms of one level (h, w) and their gradient 2 m (roll(eta, s) + roll(eta, -s)) / (h w) each."""
    loss, gradient = 0.0, np.zeros_like(eta)
    for axis in (0, 1):
        ahead = np.roll(eta, shift, axis)
        mean = float(np.multiply(eta, ahead).mean(dtype=np.float64))
        ahead += np.roll(eta, -shift, axis)
        ahead *= np.asarray(2 * mean / eta.size, dtype=eta.dtype)
        gradient += ahead
        loss += mean * mean  # a power would raise where this is infinite
    return loss, gradient


def _pool(eta: Array) -> Array:
    """Means of 2x2; an odd last row or column is left out."""
    height, width = eta.shape[0] // 2, eta.shape[1] // 2
    parts = eta[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
    return np.asarray(parts.mean(axis=(1, 3), dtype=np.float64).astype(eta.dtype))


def _unpool(gradient: Array, shape: tuple[int, int]) -> Array:
    """The gradient by what `_pool` was given: a quarter to each of four."""
    spread = np.repeat(np.repeat(gradient * np.asarray(0.25, dtype=gradient.dtype), 2, axis=0), 2, axis=1)
    if spread.shape == shape:
        return spread
    return np.pad(spread, ((0, shape[0] - spread.shape[0]), (0, shape[1] - spread.shape[1])))
