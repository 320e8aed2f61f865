"""Condition stages of latent diffusion without a language model: class labels and segmentation maps.

References:
    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, section 3.3 and
    appendix E, https://arxiv.org/abs/2112.10752. Key names are those of ``cond_stage_model.*``.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor, nn
from torch.nn import functional

from ..errors import ParameterError

__all__ = ["ClassEmbedder", "Method", "SpatialRescaler"]

Method: TypeAlias = Literal["nearest", "bilinear", "area"]


class ClassEmbedder(nn.Module):
    """A table of classes: int64 labels (B,) -> one condition token each (B, 1, width)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding(y)[:, None]


class SpatialRescaler(nn.Module):
    """Halves a map `stages` times and maps its channels.

    Arguments:
        stages: Halvings; the published models have 2, for f = 4.
        classes: Channels of the map, e.g. one-hot classes.
        channels: Channels that the UNet gets, or None to keep them.
        method: How a map is halved. Halving bilinearly meets between four pixels, so it is their mean, as "area".
        bias: The channel map has a bias.

    Returns:
        (B, channels, H / 2^stages, W / 2^stages) of a map (B, classes, H, W).
    """

    def __init__(
        self,
        stages: int,
        classes: int,
        channels: int | None = None,
        *,
        method: Method = "bilinear",
        bias: bool = False,
    ) -> None:
        super().__init__()
        if stages < 0 or method not in ("nearest", "bilinear", "area"):
            raise ParameterError(f"stages is {stages} (need >= 0), method {method!r} (need nearest, bilinear or area)")
        self.stages, self.method = stages, method
        self.channel_mapper = nn.Conv2d(classes, channels, 1, bias=bias) if channels is not None else nn.Identity()

    def forward(self, segmentation: Tensor) -> Tensor:
        h = segmentation
        for _ in range(self.stages):
            h = h[:, :, ::2, ::2] if self.method == "nearest" else functional.avg_pool2d(h, 2)
        return self.channel_mapper(h)
