"""Pixels: pictures as networks take and give them, in NumPy alone.

Inside the runtime a picture is uint8 (H, W, 3); a network's picture is float32 (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import numpy as np

from ..engines.binding import Array

__all__ = ["eight_bits", "from_float", "over_white", "resize_mask", "to_float"]


def resize_mask(mask: Array, size: tuple[int, int]) -> Array:
    """A mask (…, H, W) of any dtype brought to `size` by nearest neighbour, as torch's ``interpolate`` picks it."""
    rows = np.arange(size[0]) * mask.shape[-2] // size[0]
    columns = np.arange(size[1]) * mask.shape[-1] // size[1]
    return np.ascontiguousarray(mask[..., rows[:, None], columns[None, :]])


def to_float(image: Array) -> Array:
    """uint8 (H, W, 3) or (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]; rounds as diffusers does (x/255 · 2 - 1)."""
    batch = image if image.ndim == 4 else image[None]
    x = np.ascontiguousarray(np.moveaxis(batch, -1, 1), dtype=np.float32)
    x /= np.float32(255)
    x *= np.float32(2)
    x -= np.float32(1)
    return x


def from_float(x: Array, *, official: bool = False) -> Array:
    """float32 (B, 3, H, W) in [-1, 1], clipped -> uint8 (B, H, W, 3).

    Arguments:
        x: Pictures.
        official: Truncate to 8 bits as Latent Diffusion's scripts do (a half level darker on average); by default round
            to the nearest level, as diffusers does.
    """
    y = np.multiply(np.moveaxis(x, 1, -1), np.float32(0.5), dtype=np.float32)
    y += np.float32(0.5)
    np.clip(y, 0, 1, out=y)
    y *= np.float32(255)
    if not official:
        np.rint(y, out=y)
    return np.ascontiguousarray(y, dtype=np.uint8) if y.flags.c_contiguous else np.ascontiguousarray(y.astype(np.uint8))


def eight_bits(array: Array) -> Array:
    """uint16 -> uint8, rounded (65535 is 255)."""
    return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def over_white(rgba: Array) -> Array:
    """uint8 (…, 4) RGBA with straight alpha, laid over white -> uint8 (…, 3)."""
    alpha = rgba[..., 3:].astype(np.uint32)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
