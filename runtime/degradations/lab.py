"""CIE L*a*b* of sRGB pictures under D65: L in 0 … 100, a and b within about -110 … 110, as kornia computes them."""

from __future__ import annotations

import numpy as np

from ...engines.binding import Array
from ...errors import ParameterError

__all__ = ["lab_from_rgb", "rgb_from_lab"]

_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
_TO_XYZ = _XYZ / _WHITE[:, None]
_FROM_XYZ = np.linalg.inv(_TO_XYZ)
_KNEE, _SLOPE, _SHIFT = 0.008856, 7.787, 4.0 / 29.0


def lab_from_rgb(rgb: Array) -> Array:
    """float32 (B, 3, H, W) RGB in [-1, 1] -> Lab of the same shape."""
    _check(rgb)
    coded = (rgb.astype(np.float64) + 1) / 2
    light = np.where(coded > 0.04045, ((np.maximum(coded, 0.04045) + 0.055) / 1.055) ** 2.4, coded / 12.92)
    xyz = np.einsum("dc,bchw->bdhw", _TO_XYZ, light)
    f = np.where(xyz > _KNEE, np.maximum(xyz, _KNEE) ** (1 / 3), _SLOPE * xyz + _SHIFT)
    x, y, z = f[:, 0], f[:, 1], f[:, 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1).astype(np.float32)


def rgb_from_lab(lab: Array) -> Array:
    """float32 (B, 3, H, W) Lab -> RGB in [-1, 1] of the same shape; colours outside sRGB are clipped to it."""
    _check(lab)
    l_star, a, b = np.moveaxis(lab.astype(np.float64), 1, 0)
    y = (l_star + 16) / 116
    f = np.stack([y + a / 500, y, np.maximum(y - b / 200, 0)], axis=1)
    xyz = np.where(f > 0.2068966, f**3, (f - _SHIFT) / _SLOPE)
    light = np.clip(np.einsum("dc,bchw->bdhw", _FROM_XYZ, xyz), 0.0, 1.0)
    coded = np.where(light > 0.0031308, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055, 12.92 * light)
    return np.asarray(coded * 2 - 1, dtype=np.float32)


def _check(x: Array) -> None:
    if x.ndim != 4 or x.shape[1] != 3:
        raise ParameterError(f"Lab pictures are made of shape {x.shape}, need (B, 3, H, W); convert them to RGB")
