"""Pixels: pictures as networks take and give them, in NumPy alone.

Inside the runtime a picture is uint8 (H, W, 3); a network's picture is float32 (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import numpy as np

from ..engines.binding import Array
from ..errors import ImageError

__all__ = [
    "MAX_PIXELS",
    "check_size",
    "eight_bits",
    "from_array",
    "from_float",
    "over_white",
    "resize_mask",
    "to_float",
]

MAX_PIXELS = 64_000_000
"""Largest picture that is read unless told otherwise (8000 x 8000); a header is checked before pixels are decoded."""


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


def from_array(array: Array, max_pixels: int) -> Array:
    """A uint8 or uint16 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) as uint8 (H, W, 3); else `ImageError`."""
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"a picture's array is uint8 or uint16, this is {array.dtype} {array.shape}; convert it first")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise ImageError(f"a picture's array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), this is {array.shape}")
    check_size(array.shape[1], array.shape[0], max_pixels, "the array")
    if array.dtype == np.uint16:
        array = eight_bits(array)
    if array.shape[2] == 4:
        return over_white(array)
    return np.array(np.broadcast_to(array, (*array.shape[:2], 3)))


def check_size(width: int, height: int, max_pixels: int, label: str) -> None:
    """Raise `ImageError` for a picture of more than `max_pixels`, called `label`."""
    if width * height > max_pixels:
        raise ImageError(
            f"{label}: has {width}x{height} = {width * height} pixels, at most {max_pixels} are read; "
            "shrink it, or pass a larger max_pixels"
        )
