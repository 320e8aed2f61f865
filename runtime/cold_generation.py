"""Cold generation: pictures from nothing but a colour or a thumbnail, and a trace of noise.

References:
    Bansal et al., "Cold Diffusion", 2022, section 5 (generation from blur: perfect and broken symmetry),
    https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..engines.binding import Array
from ..errors import ParameterError
from .degradation import Degradation, check_severity, degrade
from .degradations.resolution import resample_matrix
from .degradations.spec import Random
from .restoration import Restoration, Restorer, Stage, restore
from .rng import Noise

__all__ = ["GaussianMixture", "Random", "break_symmetry", "constant_pictures", "generate", "thumbnail_pictures"]


@dataclass(frozen=True)
class GaussianMixture:
    """sum_k w_k N(m_k, S_k) with full covariances, as fitted in training and stored as arrays.

    Arguments:
        weights: (K,), not negative, sum 1.
        means: (K, D): per-channel means of pictures (D = C), or flattened thumbnails (D = C s s).
        covariances: (K, D, D), symmetric, positive semidefinite.
    """

    weights: Array
    means: Array
    covariances: Array

    def __post_init__(self) -> None:
        k, d = self.means.shape if self.means.ndim == 2 else (0, 0)
        if k < 1 or self.weights.shape != (k,) or self.covariances.shape != (k, d, d):
            raise ParameterError(
                f"mixture has weights {self.weights.shape}, means {self.means.shape}, covariances "
                f"{self.covariances.shape}; need (K,), (K, D) and (K, D, D)"
            )
        if (self.weights < 0).any() or abs(float(self.weights.sum()) - 1) > 1e-4:
            raise ParameterError(
                f"mixture weights sum to {self.weights.sum():g}, need 1, none negative; normalise them"
            )

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> GaussianMixture:
        """Of arrays by name, as a bundle keeps them."""
        names = ["weights", "means", "covariances"]
        if sorted(arrays) != sorted(names):
            raise ParameterError(
                f"a mixture is {', '.join(names)}, the file has {', '.join(arrays)}; fit it with training.fit_mixture"
            )
        return cls(*(arrays[name] for name in names))

    def sample(self, n: int, rng: Random) -> Array:
        """float32 (n, D): components by one uniform each, then normals; roots of covariances by eigenvalues."""
        component = np.searchsorted(np.cumsum(self.weights.astype(np.float64)), rng.rand(n), side="right")
        component = np.minimum(component, self.weights.size - 1)
        values, vectors = np.linalg.eigh(self.covariances.astype(np.float64))
        if values.min() < -1e-6 * max(float(values.max()), 1.0):
            raise ParameterError(f"a covariance has eigenvalue {values.min():g}; fit the mixture with a regularisation")
        roots = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
        noise = rng.randn((n, self.means.shape[1])).astype(np.float64)
        return np.asarray(self.means[component] + np.einsum("nij,nj->ni", roots[component], noise), dtype=np.float32)


def constant_pictures(colours: Array, size: tuple[int, int]) -> Array:
    """Pictures float32 (B, C, H, W) of one colour each, from (B, C)."""
    return np.array(np.broadcast_to(colours[:, :, None, None], (*colours.shape, *size)), dtype=np.float32)


def thumbnail_pictures(
    thumbnails: Array, side: int, size: tuple[int, int], *, mode: Literal["bilinear", "nearest"] = "bilinear"
) -> Array:
    """Pictures float32 (B, C, H, W) from flattened thumbnails (B, C side side), bilinear, corners not aligned."""
    if thumbnails.ndim != 2 or thumbnails.shape[1] % side**2:
        raise ParameterError(f"thumbnails have shape {thumbnails.shape}, need (B, C {side} {side}); pass their side")
    small = thumbnails.reshape(len(thumbnails), -1, side, side)
    rows, columns = (resample_matrix(side, n, mode).astype(np.float32) for n in size)
    return np.asarray(rows @ small.astype(np.float32) @ columns.T)


def break_symmetry(x: Array, level: float, rng: Noise) -> Array:
    """x + level N(0, 1). The paper's level is 0.002 ("broken symmetry"); 0 ("perfect") gives little diversity."""
    return np.asarray(x + np.float32(level) * rng.randn(x.shape)) if level else x


def generate(
    network: Restorer,
    degradation: Degradation,
    start: Array,
    *,
    t: int | None = None,
    algorithm: Literal[1, 2] = 2,
    noise: Array | None = None,
    remove_noise: bool = False,
    degrade_start: bool = True,
    keep: bool = False,
    on_step: Callable[[Stage], Any] | None = None,
) -> Restoration:
    """Pictures from `start`, the original's ``gen_sample``.

    Arguments:
        network: R.
        degradation: D; for generation from blur with ``discrete``.
        start: Constant pictures, thumbnails, an end picture: float32 (B, C, H, W).
        t: Severity that the start is at, 1 … T; T if None.
        algorithm: 1 or 2.
        noise: Scaled noise of the same shape that is added to what D makes of the start; see `break_symmetry`.
        remove_noise: Subtract it from the result, as the original's ``all_sample`` does and its ``gen_sample`` not.
        degrade_start: Push the start through D(., t) first, which changes constant pictures by rounding only. False
            for mixing and fading to a colour, whose start is the end picture itself.
        keep: Keep all stages.
        on_step: See `restoration.restore`.
    """
    severity = check_severity(degradation.steps if t is None else t, degradation.steps, least=1)
    x_t = degrade(degradation, start, severity) if degrade_start else start
    if noise is not None:
        if noise.shape != x_t.shape:
            raise ParameterError(f"noise has shape {noise.shape}, the start {x_t.shape}; draw it of the start's shape")
        x_t = np.asarray(x_t + noise, dtype=np.float32)
    result = restore(network, degradation, x_t, t=severity, algorithm=algorithm, keep=keep, on_step=on_step)
    if noise is None or not remove_noise:
        return result
    return Restoration(result.x_t, result.direct, np.asarray(result.image - noise), result.stages)
