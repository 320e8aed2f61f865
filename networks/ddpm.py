"""The ResNet UNet of DDPM as Cold Diffusion uses it for small pictures: predicts the clean one.

References:
    Ho et al., "Denoising Diffusion Probabilistic Models", 2020, appendix B, https://arxiv.org/abs/2006.11239. Key names
    are those of the original's ``Model``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CheckpointError
from .autoencoder import AttnBlock, Downsample, Upsample
from .convnext import sinusoidal
from .layers import group_norm

__all__ = ["DDPM", "DDPMConfig"]


@dataclass(frozen=True)
class DDPMConfig:
    """``attn_resolutions`` are sides in pixels at pictures of ``resolution``."""

    resolution: int = 32
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    in_channels: int = 3
    out_ch: int = 3
    dropout: float = 0.1

    @property
    def multiple(self) -> int:
        """Sides of pictures are multiples of this."""
        return int(2 ** (len(self.ch_mult) - 1))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, resolution: int = 32) -> DDPMConfig:
        """What the weights tell; at which picture size they were trained leaves no weight and has to be said.

        Raises:
            CheckpointError: These are not the weights of such a network.
        """
        if "conv_in.weight" not in state or "down.0.block.0.conv1.weight" not in state:
            found = ", ".join(list(state)[:3])
            raise CheckpointError(f"DDPM Model: has no conv_in or down.0.block.0, but {found}; is it a ConvNeXt UNet?")
        levels = len({key.split(".")[1] for key in state if key.startswith("down.")})
        blocks = len({key.split(".")[3] for key in state if key.startswith("down.0.block.")})
        ch, in_channels = state["conv_in.weight"].shape[:2]
        mults = tuple(state[f"down.{level}.block.0.conv1.weight"].shape[0] // ch for level in range(levels))
        attend = tuple(resolution >> level for level in range(levels) if f"down.{level}.attn.0.norm.weight" in state)
        return cls(resolution, ch, mults, blocks, attend, in_channels, state["conv_out.weight"].shape[0])


class ResnetBlock(nn.Module):
    """GN-SiLU-conv twice with a skip, the time embedding added in between."""

    def __init__(self, in_channels: int, out_channels: int, emb: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.temb_proj = nn.Linear(emb, out_channels)
        self.norm2 = group_norm(out_channels, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x))) + self.temb_proj(functional.silu(emb))[:, :, None, None]
        h = self.conv2(self.dropout(functional.silu(self.norm2(h))))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


class _Level(nn.Module):
    """One resolution: residual blocks, each followed by attention where the level has it."""

    def __init__(self, pairs: list[tuple[int, int]], emb: int, dropout: float, *, attend: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b, emb, dropout) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b) for _, b in pairs if attend)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def step(self, index: int, x: Tensor, emb: Tensor) -> Tensor:
        """Block `index` and its attention."""
        x = self.block[index](x, emb)
        return self.attn[index](x) if len(self.attn) > 0 else x


class _Middle(nn.Module):
    def __init__(self, channels: int, emb: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, emb, dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, emb, dropout)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, emb)), emb)


class _Time(nn.Module):
    def __init__(self, ch: int) -> None:
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(ch, 4 * ch), nn.Linear(4 * ch, 4 * ch)])

    def forward(self, t: Tensor) -> Tensor:
        first, second = cast("list[nn.Linear]", list(self.dense))
        emb = sinusoidal(t, first.in_features).to(first.weight.dtype)
        return second(functional.silu(first(emb)))


class DDPM(nn.Module):
    """R(x, t): the clean picture.

    Arguments:
        x: Degraded pictures (B, in_channels, H, W) in [-1, 1], sides multiples of 2^(levels-1).
        t: Severities less one (B,), 0 … T-1, integer or float.

    Returns:
        (B, out_ch, H, W).
    """

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__()
        self.config = config
        emb, blocks = 4 * config.ch, config.num_res_blocks
        self.temb = _Time(config.ch)
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        width, skips, side = config.ch, [config.ch], config.resolution
        self.down = nn.ModuleList()
        for level, mult in enumerate(config.ch_mult):
            out = config.ch * mult
            pairs = [(width if index == 0 else out, out) for index in range(blocks)]
            stage = _Level(pairs, emb, config.dropout, attend=side in config.attn_resolutions)
            skips += [out] * blocks
            if level != len(config.ch_mult) - 1:
                stage.downsample = Downsample(out)
                skips.append(out)
                side //= 2
            self.down.append(stage)
            width = out
        self.mid = _Middle(width, emb, config.dropout)
        up: list[_Level] = []
        for level in reversed(range(len(config.ch_mult))):
            out = config.ch * config.ch_mult[level]
            pairs = [((width if index == 0 else out) + skips.pop(), out) for index in range(blocks + 1)]
            stage = _Level(pairs, emb, config.dropout, attend=side in config.attn_resolutions)
            if level != 0:
                stage.upsample = Upsample(out)
                side *= 2
            up.insert(0, stage)
            width = out
        self.up = nn.ModuleList(up)
        self.norm_out = group_norm(width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.out_ch, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self.temb(t)
        h = self.conv_in(x)
        skips = [h]
        for level in cast("list[_Level]", list(self.down)):
            for index in range(len(level.block)):
                h = level.step(index, h, emb)
                skips.append(h)
            if level.downsample is not None:
                h = level.downsample(h)
                skips.append(h)
        h = self.mid(h, emb)
        for level in cast("list[_Level]", list(reversed(self.up))):
            for index in range(len(level.block)):
                h = level.step(index, torch.cat([h, skips.pop()], dim=1), emb)
            h = h if level.upsample is None else level.upsample(h)
        return self.conv_out(functional.silu(self.norm_out(h)))
