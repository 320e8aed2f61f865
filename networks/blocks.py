"""Blocks of openaimodel's UNet that know nothing of its options: attention over pixels, and changes of resolution."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .layers import attention, group_norm

__all__ = ["AttentionBlock", "Downsample", "Upsample"]


class AttentionBlock(nn.Module):
    """Self-attention over pixels with one ``qkv`` convolution.

    The published ("legacy") channel order is [q_h, k_h, v_h] per head; the new order is [Q; K; V].
    """

    def __init__(self, channels: int, heads: int, *, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x).flatten(2))
        dim = channels // self.heads
        if self.new_order:
            parts = qkv.reshape(batch, 3, self.heads, dim, height * width).unbind(1)
        else:
            parts = qkv.reshape(batch, self.heads, 3, dim, height * width).unbind(2)
        q, k, v = (part.transpose(-1, -2) for part in parts)
        h = attention(q, k, v, scale=dim**-0.5)
        h = h.transpose(-1, -2).reshape(batch, channels, height * width)
        return x + self.proj_out(h).reshape(x.shape)


class Downsample(nn.Module):
    """Stride-2 convolution, or 2x2 mean without ``conv_resample``."""

    def __init__(self, channels: int, *, conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, 2, 1) if conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest x2, and a convolution with ``conv_resample``."""

    def __init__(self, channels: int, *, conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
