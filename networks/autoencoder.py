"""AutoencoderKL, the first stage of latent diffusion, and the encoder and decoder that VQModel shares.

References:
    Rombach, Blattmann, Lorenz, Esser, Ommer, "High-Resolution Image Synthesis with Latent Diffusion
    Models", 2022, https://arxiv.org/abs/2112.10752, section 3.1. Key names are those of
    CompVis/latent-diffusion (``first_stage_model.*`` without its prefix).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from .layers import attention, group_norm


@dataclass(frozen=True)
class AutoencoderConfig:
    """The ``ddconfig`` of a first stage; ``attn_resolutions`` are pixel sizes at ``resolution``."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    resolution: int = 256
    attn_resolutions: tuple[int, ...] = ()
    in_channels: int = 3
    out_ch: int = 3
    double_z: bool = True
    dropout: float = 0.0
    attn_type: str = "vanilla"

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> AutoencoderConfig:
        """Reads a ``ddconfig`` mapping; keys of the original that have no effect here are dropped."""
        known = {k: v for k, v in config.items() if k in cls.__dataclass_fields__}
        for name in ("ch_mult", "attn_resolutions"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)

    @property
    def factor(self) -> int:
        """Down-sampling factor f from pixels to latents."""
        return 2 ** (len(self.ch_mult) - 1)


class ResnetBlock(nn.Module):
    """GN-SiLU-conv twice with a skip; no time embedding in a first stage."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(self.dropout(functional.silu(self.norm2(h))))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        h = attention(q, k, v, scale=x.shape[1] ** -0.5)
        return x + self.proj_out(h[:, 0].transpose(1, 2).reshape(x.shape))


def _attn(channels: int, attn_type: str) -> nn.Module:
    return nn.Identity() if attn_type == "none" else AttnBlock(channels)


class Downsample(nn.Module):
    """Stride-2 convolution after the asymmetric padding (0, 1, 0, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest x2 and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """One resolution: residual blocks, each followed by attention where the level has it."""

    def __init__(self, widths: Sequence[int], *, attend: bool, config: AutoencoderConfig) -> None:
        super().__init__()
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.block = nn.ModuleList(ResnetBlock(a, b, config.dropout) for a, b in pairs)
        self.attn = nn.ModuleList(_attn(b, config.attn_type) for _, b in pairs if attend)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[index](x)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class _Middle(nn.Module):
    def __init__(self, channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, config.dropout)
        self.attn_1 = _attn(channels, config.attn_type)
        self.block_2 = ResnetBlock(channels, channels, config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Image (B, in_channels, H, W) -> (B, z or 2z, H/f, W/f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        width, resolution = config.ch, config.resolution
        for index, mult in enumerate(config.ch_mult):
            out = config.ch * mult
            widths = [width] + [out] * config.num_res_blocks
            attend = resolution in config.attn_resolutions
            level = _Level(widths, attend=attend, config=config)
            if index != len(config.ch_mult) - 1:
                level.downsample = Downsample(out)
                resolution //= 2
            self.down.append(level)
            width = out
        self.mid = _Middle(width, config)
        self.norm_out = group_norm(width, eps=1e-6)
        z = config.z_channels * (2 if config.double_z else 1)
        self.conv_out = nn.Conv2d(width, z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(functional.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent (B, z, h, w) -> image (B, out_ch, h f, w f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        levels = len(config.ch_mult)
        width = config.ch * config.ch_mult[-1]
        resolution = config.resolution // config.factor
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.mid = _Middle(width, config)
        up: list[_Level] = []
        for index in reversed(range(levels)):
            out = config.ch * config.ch_mult[index]
            widths = [width] + [out] * (config.num_res_blocks + 1)
            attend = resolution in config.attn_resolutions
            level = _Level(widths, attend=attend, config=config)
            if index != 0:
                level.upsample = Upsample(out)
                resolution *= 2
            up.insert(0, level)
            width = out
        self.up = nn.ModuleList(up)
        self.norm_out = group_norm(width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(functional.silu(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    """First stage with a diagonal Gaussian posterior."""

    def __init__(self, config: AutoencoderConfig, embed_dim: int) -> None:
        super().__init__()
        self.config, self.embed_dim = config, embed_dim
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, config.z_channels, 1)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance (clamped to [-30, 20]) of an image in [-1, 1]."""
        mean, log_variance = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, z: Tensor) -> Tensor:
        """Image of an unscaled latent."""
        return self.decoder(self.post_quant_conv(z))
