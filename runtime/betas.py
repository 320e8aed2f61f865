"""Laws of beta: the forward variances that checkpoints were trained with.

References:
    Ho et al., "Denoising Diffusion Probabilistic Models", 2020 (linear), https://arxiv.org/abs/2006.11239
    Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021 (cosine), https://arxiv.org/abs/2102.09672
    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022 (scaled linear)
"""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Integral
from typing import Any

import numpy as np

from ..engines.binding import Array
from ..errors import ParameterError

__all__ = ["named_betas"]

_NAMES = ("linear", "scaled_linear", "sqrt_linear", "sqrt", "cosine")


def named_betas(name: str, steps: Any = 1000, start: float | None = None, end: float | None = None) -> Array:
    """Betas by name.

    The field and Latent Diffusion disagree on names: "scaled_linear" (linear in the square root, squared) is
    called ``linear`` in Latent Diffusion's code, and its ``sqrt_linear`` is the linear one. "linear" and
    "sqrt_linear" here are the same law with the last bit rounded as guided-diffusion and as Latent Diffusion
    do.

    Arguments:
        name: "linear", "scaled_linear", "sqrt_linear", "sqrt" or "cosine".
        steps: T.
        start: First beta; by default 0.00085 for "scaled_linear", 1e-4 · 1000/T for "linear", else 1e-4. Unused by
            "cosine".
        end: Last beta; by default 0.012, 0.02 · 1000/T, 0.02.

    Returns:
        float64 (T,).
    """
    if name not in _NAMES:
        raise ParameterError(
            f"no schedule is named {name!r}, there are {', '.join(_NAMES)}; use one or Schedule.from_betas"
        )
    if isinstance(steps, bool) or not isinstance(steps, Integral) or int(steps) < 1:
        raise ParameterError(f"a schedule of {steps!r} timesteps was asked for; pass a whole number, 1 or more")
    count = int(steps)
    if name == "cosine":
        return _cosine(count)
    scale = 1000 / count if name == "linear" else 1.0
    first, last = (0.00085, 0.012) if name == "scaled_linear" else (1e-4 * scale, 2e-2 * scale)
    first, last = first if start is None else start, last if end is None else end
    if not 0 < first <= last < 1:
        raise ParameterError(f"betas run from {first} to {last} and must lie in (0, 1), rising; swap or correct them")
    if name == "linear":
        return np.linspace(first, last, count, dtype=np.float64)
    if name == "scaled_linear":
        return _linspace(first**0.5, last**0.5, count) ** 2
    law = _linspace(first, last, count)
    return law**0.5 if name == "sqrt" else law


def _cosine(steps: int) -> Array:
    """min(1 - f((i+1)/T) / f(i/T), 0.999) with f(u) = cos²((u + 0.008) / 1.008 · π/2)."""

    def bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - bar((i + 1) / steps) / bar(i / steps), 0.999) for i in range(steps)])


def _linspace(start: float, end: float, count: int) -> Array:
    """torch.linspace in float64: counted from both ends, each value rounded once, as torch does."""
    if count == 1:
        return np.array([start])
    step = Fraction((end - start) / (count - 1))
    half = count // 2
    rising = [float(Fraction(start) + step * i) for i in range(half)]
    return np.array(rising + [float(Fraction(end) - step * i) for i in range(count - half - 1, -1, -1)])
