"""The ConvNeXt UNet of Cold Diffusion: predicts the clean picture from a degraded one.

References:
    Bansal et al., "Cold Diffusion", 2022, appendix A, https://arxiv.org/abs/2208.09392; Liu et al., "A ConvNet for the
    2020s", 2022. Key names are those of the original's ``Unet`` and of its snow package's ``UnetConvNextBlock``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

__all__ = ["ConvNextConfig", "ConvNextUNet", "sinusoidal"]


@dataclass(frozen=True)
class ConvNextConfig:
    """Widths of level l are ``dim * dim_mults[l]``; ``residual`` adds the input to the output."""

    dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    channels: int = 3
    with_time_emb: bool = True
    residual: bool = False

    @property
    def multiple(self) -> int:
        """Sides of pictures are multiples of this."""
        return int(2 ** (len(self.dim_mults) - 1))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, residual: bool = False) -> ConvNextConfig:
        """What the weights tell; ``residual`` leaves no weight and has to be said.

        Raises:
            CheckpointError: These are not the weights of such a network.
        """
        levels = 0
        while f"downs.{levels}.0.net.3.weight" in state:
            levels += 1
        if not levels or "final_conv.1.weight" not in state:
            found = ", ".join(list(state)[:3])
            raise CheckpointError(f"ConvNeXt UNet: has no downs.0 or final_conv.1, but {found}; is it a DDPM Model?")
        dim = state["final_conv.1.weight"].shape[1]
        widths = [state[f"downs.{level}.0.net.3.weight"].shape[0] for level in range(levels)]
        channels = state["downs.0.0.ds_conv.weight"].shape[0]
        return cls(dim, tuple(w // dim for w in widths), channels, "time_mlp.1.weight" in state, residual)


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    """[sin, cos] of t times frequencies 1 … 1/10000 (divisor dim/2 - 1), float32 (B, dim), dim even.

    Not `layers.timestep_embedding`, which is [cos, sin] with divisor dim/2.
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10_000.0) / (half - 1) * index)[None]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


class _Sinusoidal(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        return sinusoidal(t, self.dim)


class ChannelNorm(nn.Module):
    """LayerNorm over channels at each pixel, biased variance."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.b = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        return centred / torch.sqrt(variance + self.eps) * self.g + self.b


class ConvNextBlock(nn.Module):
    """Depthwise 7x7, time added, norm, 3x3 to twice the width, GELU, 3x3, with a skip."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int | None, *, norm: bool = True) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.GELU(), nn.Linear(time_dim, in_channels)) if time_dim is not None else None
        self.ds_conv = nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)
        self.net = nn.Sequential(
            ChannelNorm(in_channels) if norm else nn.Identity(),
            nn.Conv2d(in_channels, 2 * out_channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * out_channels, out_channels, 3, padding=1),
        )
        self.res_conv = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        h = self.ds_conv(x)
        if self.mlp is not None and emb is not None:
            h = h + self.mlp(emb)[:, :, None, None]
        return self.net(h) + self.res_conv(x)


class LinearAttention(nn.Module):
    """Attention with a softmax over the keys' pixels and none over queries: linear in the pixels; 4 heads of 32."""

    heads, width = 4, 32

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = self.heads * self.width
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        q, k, v = self.to_qkv(x).reshape(b, 3, self.heads, self.width, height * width).unbind(1)
        context = torch.softmax(k.float(), dim=-1).to(v.dtype) @ v.transpose(-1, -2)
        out = context.transpose(-1, -2) @ (q * self.width**-0.5)
        return self.to_out(out.reshape(b, self.heads * self.width, height, width))


class _Normed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fn = LinearAttention(channels)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class Attention(nn.Module):
    """x + attention of normed x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fn = _Normed(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class _Final(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self[1](self[0](x, None))


class ConvNextUNet(nn.Module):
    """R(x, t): the clean picture.

    Arguments:
        x: Degraded pictures (B, channels, H, W) in [-1, 1], sides multiples of 2^(levels-1).
        t: Severities less one (B,), 0 … T-1, integer or float; not used without time embedding.

    Returns:
        (B, channels, H, W).
    """

    def __init__(self, config: ConvNextConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        time = dim if config.with_time_emb else None
        if config.with_time_emb:
            self.time_mlp = nn.Sequential(_Sinusoidal(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        widths = [config.channels, *(dim * mult for mult in config.dim_mults)]
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.downs = nn.ModuleList()
        for level, (a, b) in enumerate(pairs):
            blocks = [ConvNextBlock(a, b, time, norm=level != 0), ConvNextBlock(b, b, time), Attention(b)]
            down = nn.Conv2d(b, b, 4, stride=2, padding=1) if level != len(pairs) - 1 else nn.Identity()
            self.downs.append(nn.ModuleList([*blocks, down]))
        middle = widths[-1]
        self.mid_block1 = ConvNextBlock(middle, middle, time)
        self.mid_attn = Attention(middle)
        self.mid_block2 = ConvNextBlock(middle, middle, time)
        self.ups = nn.ModuleList()
        for a, b in reversed(pairs[1:]):
            blocks = [ConvNextBlock(2 * b, a, time), ConvNextBlock(a, a, time), Attention(a)]
            self.ups.append(nn.ModuleList([*blocks, nn.ConvTranspose2d(a, a, 4, stride=2, padding=1)]))
        self.final_conv = _Final(ConvNextBlock(dim, dim, None), nn.Conv2d(dim, config.channels, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = None
        if self.config.with_time_emb:
            first, linear, gelu, last = self.time_mlp
            emb = last(gelu(linear(first(t).to(cast(nn.Linear, linear).weight.dtype))))
        h, skips = x, list[Tensor]()
        for stage in self.downs:
            block1, block2, attend, down = cast(nn.ModuleList, stage)
            h = attend(block2(block1(h, emb), emb))
            skips.append(h)
            h = down(h)
        h = self.mid_block2(self.mid_attn(self.mid_block1(h, emb)), emb)
        for stage in self.ups:  # one stage fewer than downs: the first level's skip has no use
            block1, block2, attend, up = cast(nn.ModuleList, stage)
            h = block1(torch.cat([h, skips.pop()], dim=1), emb)
            h = up(attend(block2(h, emb)))
        result = self.final_conv(h)
        return result + x if self.config.residual else result
