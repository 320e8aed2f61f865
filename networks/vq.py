"""VQModel's first stage: an autoencoder around a codebook.

References:
    Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image Synthesis", 2021,
    https://arxiv.org/abs/2012.09841; key names are those of CompVis/latent-diffusion.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .autoencoder import AutoencoderConfig, Decoder, Encoder


class VectorQuantizer(nn.Module):
    """Nearest code by squared distance (taming-transformers' VectorQuantizer2)."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent (B, C, h, w) -> its quantisation (B, C, h, w) and the codes' indices (B h w,)."""
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        table = self.embedding.weight
        # |z - e|² without |z|², which no code changes.
        indices = torch.argmin((table**2).sum(1) - 2 * flat @ table.t(), dim=1)
        rows = self.embedding(indices).reshape(z.shape[0], z.shape[2], z.shape[3], z.shape[1])
        return rows.permute(0, 3, 1, 2), indices


class VQModelInterface(nn.Module):
    """First stage with a codebook; encode stays before quantisation, decode quantises."""

    def __init__(self, config: AutoencoderConfig, embed_dim: int, n_embed: int) -> None:
        super().__init__()
        self.config, self.embed_dim = config, embed_dim
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(n_embed, embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, config.z_channels, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Latent before quantisation of an image in [-1, 1]."""
        return self.quant_conv(self.encoder(image))

    def decode(self, h: Tensor, *, force_not_quantize: bool = False) -> Tensor:
        """Image of a latent, quantised first unless ``force_not_quantize``."""
        z = h if force_not_quantize else self.quantize(h)[0]
        return self.decoder(self.post_quant_conv(z))
