"""The UNet of latent diffusion and guided diffusion, under openaimodel's key names.

One module serves both families: cross-attention (SpatialTransformer) for latent diffusion,
AttentionBlock with learned variance and label embedding for guided diffusion.

References:
    Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, https://arxiv.org/abs/2105.05233
    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
    https://arxiv.org/abs/2112.10752
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import AttentionBlock, Downsample, Upsample
from .layers import group_norm, timestep_embedding
from .transformer import SpatialTransformer


@dataclass(frozen=True)
class UNetConfig:
    """Constructor options of openaimodel's ``UNetModel`` that change numbers.

    ``attention_resolutions`` are down-sampling factors of the input. Heads per attention are
    ``num_heads``, or the level's width divided by ``num_head_channels`` where that is not -1;
    the original's ``legacy`` flag changes no number and is not kept.
    """

    in_channels: int
    model_channels: int
    out_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    channel_mult: tuple[float, ...] = (1, 2, 4, 8)
    num_heads: int = -1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    conv_resample: bool = True
    dropout: float = 0.0
    num_classes: int | None = None
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    use_spatial_transformer: bool = False
    transformer_depth: int = 1
    context_dim: int | None = None

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> UNetConfig:
        """Reads ``unet_config.params``; keys without effect on the numbers are dropped."""
        known = {k: v for k, v in config.items() if k in cls.__dataclass_fields__}
        for name in ("attention_resolutions", "channel_mult"):
            if name in known:
                known[name] = tuple(known[name])
        return cls(**known)

    @property
    def stem(self) -> int:
        """Width of the first convolution; guided-diffusion scales it by the first multiplier, openaimodel does not."""
        first = 1 if self.use_spatial_transformer else self.channel_mult[0]
        return int(first * self.model_channels)

    def heads(self, channels: int, *, up: bool = False) -> int:
        """Attention heads at a level of this width."""
        if self.num_head_channels != -1:
            return channels // self.num_head_channels
        return self.num_heads_upsample if up and self.num_heads_upsample != -1 else self.num_heads


class ResBlock(nn.Module):
    """GN-SiLU-conv, time embedding added (or as scale and shift), GN-SiLU-conv, skip."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int,
        config: UNetConfig,
        *,
        resample: float = 1.0,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.film = config.use_scale_shift_norm
        width = 2 * out_channels if self.film else out_channels
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, width))
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == 1.0:
            return x
        if self.resample > 1.0:
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return functional.avg_pool2d(x, 2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, silu, conv = self.in_layers
        h = conv(self._resampled(silu(norm(x))))
        offset = self.emb_layers(emb)[:, :, None, None].to(h.dtype)
        if self.film:
            scale, shift = offset.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            for layer in list(self.out_layers)[1:]:
                h = layer(h)
        else:
            h = self.out_layers(h + offset)
        return self.skip_connection(self._resampled(x)) + h


class Stage(nn.Sequential):
    """A list of layers of which each takes what it can use: embedding, context or neither."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:  # type: ignore[override]
        for layer in self:
            match layer:
                case ResBlock():
                    x = layer(x, emb)
                case SpatialTransformer():
                    x = layer(x, context)
                case _:
                    x = layer(x)
        return x


class UNet(nn.Module):
    """Noise (or v, or x0) prediction of x_t.

    Arguments:
        x: Noised input (B, in_channels, H, W), concatenated conditions included; H and W are
            multiples of 2^(levels-1).
        timesteps: Timestep indices (B,), integer or float.
        context: Condition tokens (B, T, context_dim), or None for self-attention in their place.
        y: Class labels (B,) int64 where ``num_classes`` is set.

    Returns:
        (B, out_channels, H, W).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width, emb = config.model_channels, 4 * config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, emb)

        def res(a: int, b: int, resample: float = 1.0) -> ResBlock:
            return ResBlock(a, emb, b, config, resample=resample)

        ch = config.stem
        first = nn.Conv2d(config.in_channels, ch, 3, padding=1)
        self.input_blocks = nn.ModuleList([Stage(first)])
        skips, ds = [ch], 1
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                out = int(mult * width)
                layers: list[nn.Module] = [res(ch, out)]
                ch = out
                if ds in config.attention_resolutions:
                    layers.append(self._attention(ch))
                self.input_blocks.append(Stage(*layers))
                skips.append(ch)
            if level != len(config.channel_mult) - 1:
                down = res(ch, ch, 0.5) if config.resblock_updown else Downsample(ch, conv=config.conv_resample)
                self.input_blocks.append(Stage(down))
                skips.append(ch)
                ds *= 2
        self.middle_block = Stage(res(ch, ch), self._attention(ch), res(ch, ch))
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for index in range(config.num_res_blocks + 1):
                out = int(mult * width)
                layers = [res(ch + skips.pop(), out)]
                ch = out
                if ds in config.attention_resolutions:
                    layers.append(self._attention(ch, up=True))
                if level and index == config.num_res_blocks:
                    layers.append(
                        res(ch, ch, 2.0) if config.resblock_updown else Upsample(ch, conv=config.conv_resample)
                    )
                    ds //= 2
                self.output_blocks.append(Stage(*layers))
        self.out = nn.Sequential(group_norm(ch), nn.SiLU(), nn.Conv2d(ch, config.out_channels, 3, padding=1))

    def _attention(self, channels: int, *, up: bool = False) -> nn.Module:
        config = self.config
        if config.use_spatial_transformer:
            heads = config.heads(channels)
            return SpatialTransformer(channels, heads, config.transformer_depth, config.context_dim)
        heads = config.heads(channels, up=up)
        return AttentionBlock(channels, heads, new_order=config.use_new_attention_order)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        dtype = cast(nn.Conv2d, cast(Stage, self.input_blocks[0])[0]).weight.dtype
        emb = self.time_embed(timestep_embedding(timesteps, self.config.model_channels).to(dtype))
        if self.config.num_classes is not None:
            if y is None:
                raise ValueError("this UNet is class-conditional: pass the labels y (B,)")
            emb = emb + self.label_emb(y)
        h, skips = x, list[Tensor]()
        for stage in self.input_blocks:
            h = stage(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)
