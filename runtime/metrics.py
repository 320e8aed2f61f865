"""Distances between pictures: PSNR, SSIM, RMSE; and between sets of features: the Fréchet distance."""

from __future__ import annotations

import numpy as np

from ..engines.binding import Array
from ..errors import ParameterError

__all__ = ["frechet_distance", "psnr", "rmse", "ssim"]


def rmse(a: Array, b: Array) -> float:
    """Root of the mean squared difference over everything, in the unit of the pictures."""
    _same(a, b)
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))


def psnr(a: Array, b: Array, *, data_range: float = 1.0) -> Array:
    """Peak signal-to-noise ratio in dB of each picture, float64 (B,); infinite for equal pictures.

    Arguments:
        a: (B, …).
        b: (B, …).
        data_range: Difference of white and black: 1 for [0, 1], 2 for [-1, 1], 255 for 8 bits.
    """
    _same(a, b)
    error = np.mean((a.astype(np.float64) - b) ** 2, axis=tuple(range(1, a.ndim)))
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(data_range**2 / error))


def ssim(a: Array, b: Array, *, data_range: float = 1.0) -> Array:
    """Structural similarity of each picture, float64 (B,), at most 1; its mean is pytorch_msssim's ``ssim``.

    A Gaussian window of 11 pixels and deviation 1.5, no padding, K = 0.01 and 0.03, channels averaged.

    Arguments:
        a: (B, C, H, W), H and W 11 or more.
        b: The same.
        data_range: Difference of white and black.

    References:
        Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, eq. 13
    """
    _same(a, b)
    if a.ndim != 4 or min(a.shape[-2:]) < 11:
        raise ParameterError(
            f"pictures have shape {a.shape}, SSIM needs (B, C, H, W) of 11 pixels or more; enlarge them"
        )
    window = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def smooth(x: Array) -> Array:
        for axis in (-2, -1):
            x = np.lib.stride_tricks.sliding_window_view(x, 11, axis=axis) @ window
        return x

    x, y = a.astype(np.float64), b.astype(np.float64)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return np.asarray(((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure).mean(axis=(1, 2, 3)))


def frechet_distance(mean1: Array, covariance1: Array, mean2: Array, covariance2: Array) -> float:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½) of two Gaussians.

    The trace of the root is taken from the eigenvalues of S1^½ S2 S1^½, symmetric, so nothing complex arises.

    Arguments:
        mean1: (D,).
        covariance1: (D, D), symmetric.
        mean2: (D,).
        covariance2: (D, D), symmetric.

    References:
        Heusel et al., "GANs Trained by a Two Time-Scale Update Rule …", 2017, eq. 6, https://arxiv.org/abs/1706.08500
    """
    _same(mean1, mean2)
    _same(covariance1, covariance2)
    s1, s2 = covariance1.astype(np.float64), covariance2.astype(np.float64)
    values, vectors = np.linalg.eigh((s1 + s1.T) / 2)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = root @ s2 @ root
    trace = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0.0)).sum()
    difference = mean1.astype(np.float64) - mean2
    return float(difference @ difference + np.trace(s1) + np.trace(s2) - 2 * trace)


def _same(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise ParameterError(f"shapes {a.shape} and {b.shape} cannot be compared; crop or resize one to the other")
