"""The arithmetic of judging generated pictures: retrieval, nearest neighbours, PSNR, and how sure one may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..engines.binding import Array

__all__ = ["Nearest", "Share", "nearest_by_cosine", "nearest_by_pixels", "normalized", "psnr", "ranks"]


@dataclass(frozen=True)
class Share:
    """How many of how many, as a fraction, with Wilson's 95 % interval.

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference", 1927
    """

    hits: int
    count: int

    @property
    def value(self) -> float:
        """hits / count, 0 of nothing."""
        return self.hits / self.count if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the share that it was drawn from."""
        if not self.count:
            return 0.0, 1.0
        z, n = 1.959964, self.count
        centre = (self.value + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(self.value * (1 - self.value) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_json(self) -> dict[str, float]:
        """Fraction, count and interval, rounded to 4 digits."""
        low, high = self.interval
        return {"share": round(self.value, 4), "of": self.count, "low": round(low, 4), "high": round(high, 4)}


@dataclass(frozen=True)
class Nearest:
    """For each of N pictures the most similar one of a gallery: its index (N,) int64, and the similarity (N,)."""

    index: Array
    value: Array


def normalized(features: Array) -> Array:
    """Features (N, D) at unit length, float32."""
    length = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.maximum(length, 1e-12)).astype(np.float32)


def ranks(queries: Array, gallery: Array) -> Array:
    """How many gallery pictures are at least as similar to query i as its own, picture i.

    Arguments:
        queries: Features (N, D) of generated pictures.
        gallery: Features (N, D) of the real pictures, in the same order.

    Returns:
        int64 (N,), 0 where the own picture comes first; a tie counts against it.
    """
    cosine = normalized(queries) @ normalized(gallery).T
    own = np.diagonal(cosine)[:, None]
    return (cosine >= own).sum(axis=1) - 1


def nearest_by_cosine(queries: Array, gallery: Array) -> Nearest:
    """The gallery feature (M, D) of the highest cosine with each query (N, D)."""
    cosine = normalized(queries) @ normalized(gallery).T
    index = cosine.argmax(axis=1)
    return Nearest(index, cosine[np.arange(len(index)), index])


def psnr(a: Array, b: Array) -> Array:
    """Peak signal-to-noise ratio in dB of uint8 (N, H, W, 3) pictures, one each: float64 (N,), at most 99."""
    error = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    return _decibel(error.reshape(len(a), -1).mean(axis=1))


def nearest_by_pixels(queries: Array, gallery: Array, *, chunk: int = 512) -> Nearest:
    """The gallery picture of the highest PSNR with each query, uint8 (…, H, W, 3) both; the value is in dB."""
    flat = queries.reshape(len(queries), -1).astype(np.float64)
    best = np.full(len(flat), np.inf)
    index = np.zeros(len(flat), dtype=np.int64)
    for start in range(0, len(gallery), chunk):
        block = gallery[start : start + chunk].reshape(-1, flat.shape[1]).astype(np.float64)
        # |a - b|² expanded; sums of squared bytes are exact in float64.
        error = (flat**2).sum(axis=1)[:, None] + (block**2).sum(axis=1)[None] - 2 * flat @ block.T
        closest = error.argmin(axis=1)
        value = error[np.arange(len(flat)), closest]
        index = np.where(value < best, start + closest, index)
        best = np.minimum(value, best)
    return Nearest(index, _decibel(np.maximum(best, 0.0) / flat.shape[1]))


def _decibel(mean_square: Array) -> Array:
    return np.minimum(99.0, 10 * np.log10(255.0**2 / np.maximum(mean_square, 1e-9)))
