"""Resizing and cropping as products with interpolation matrices.

A resized picture is A X Bᵀ with one matrix for each axis, so its derivative is a product too: Aᵀ G B. The operators
that libraries have for it (interpolate, grid_sample) have a scatter for a derivative, which engines lack or run slowly.
A crop's box may be a tensor: then it is an input of the network, and one graph serves every box.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Filter", "crop_matrix", "resample", "resize_matrix", "upsample_nearest"]

Filter: TypeAlias = Literal["bilinear", "bicubic"]


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel, 1 at 0, of support 2."""
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _weights(source: Tensor, low: Tensor, high: Tensor, scale: Tensor, size: int, kind: Filter, smooth: bool) -> Tensor:
    """Weights (…, out, size) of samples at `source` (…, out, 1), from the pixels low … high alone."""
    pixels = torch.arange(size, device=source.device, dtype=source.dtype)
    if smooth:  # a kernel as wide as the pixels it makes, cut at the border and made to sum to 1
        distance = (pixels - source) / scale.clamp(min=1.0)
        kernel = (1 - distance.abs()).clamp(min=0) if kind == "bilinear" else _cubic(distance, -0.5)
        kernel = kernel * ((pixels >= low - 1e-3) & (pixels <= high + 1e-3)).to(source.dtype)
        return kernel / kernel.sum(-1, keepdim=True)
    if kind == "bilinear":
        inside = torch.minimum(torch.maximum(source, low), high)
        return (1 - (pixels - inside).abs()).clamp(min=0)
    floor, total = torch.floor(source), torch.zeros_like(source)
    for offset in (-1, 0, 1, 2):  # the border's pixels stand for those beyond it
        tap = torch.minimum(torch.maximum(floor + offset, low), high)
        total = total + _cubic(source - (floor + offset), -0.75) * (pixels == tap).to(source.dtype)
    return total


def resize_matrix(
    out: int,
    size: int,
    kind: Filter = "bilinear",
    *,
    antialias: bool = False,
    align_corners: bool = False,
    like: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The matrix (out, size) of ``interpolate`` from `size` to `out` along one axis.

    Arguments:
        out: Pixels to make.
        size: Pixels there are.
        kind: The kernel.
        antialias: Widen the kernel when shrinking, as torch does with ``antialias=True``.
        align_corners: As torch's.
        like: Gives type and device, float32 on the CPU without it.
        scale: Pixels there are for one that is made, ``size / out`` without it; torch steps by 1 / scale_factor.
    """
    dtype, device = (torch.float32, None) if like is None else (like.dtype, like.device)
    index = torch.arange(out, dtype=dtype, device=device)[:, None]
    step = torch.as_tensor(size / out if scale is None else scale, dtype=index.dtype, device=index.device)
    source = index * ((size - 1) / max(out - 1, 1)) if align_corners else (index + 0.5) * step - 0.5
    low, high = torch.zeros_like(step), torch.full_like(step, float(size - 1))
    return _weights(source, low, high, step, size, kind, antialias)


def crop_matrix(
    out: int,
    size: int,
    start: Tensor,
    length: Tensor,
    kind: Filter = "bilinear",
    *,
    antialias: bool = False,
    flip: Tensor | None = None,
) -> Tensor:
    """The matrices (n, out, size) of n crops, resized to `out`, along one axis.

    Arguments:
        out: Pixels to make.
        size: Pixels there are.
        start: First pixel of each crop (n,), not necessarily whole.
        length: Pixels of each crop (n,).
        kind: The kernel.
        antialias: Widen the kernel when shrinking.
        flip: 1 where the crop is mirrored, else 0 (n,).
    """
    index = torch.arange(out, device=start.device, dtype=start.dtype)[None]
    if flip is not None:
        index = index + flip[:, None] * (out - 1 - 2 * index)
    scale = (length / out)[:, None, None]
    low = start[:, None, None]
    source = low + (index[:, :, None] + 0.5) * scale - 0.5
    high = low + length[:, None, None] - 1
    return _weights(source, low, high, scale, size, kind, antialias)


def resample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x (n, C, H, W) by matrices (h, H) and (w, W), or one of each for every picture: (n, C, h, w)."""
    if rows.ndim == 3:
        rows, columns = rows[:, None], columns[:, None]
    return rows @ (x @ columns.transpose(-1, -2))


def upsample_nearest(x: Tensor, factor: int) -> Tensor:
    """x (B, C, H, W) with every pixel `factor` times along both sides, by expanding: its derivative is a sum."""
    batch, channels, height, width = x.shape
    spread = x[:, :, :, None, :, None].expand(batch, channels, height, factor, width, factor)
    return spread.reshape(batch, channels, height * factor, width * factor)
