"""Losses whose gradients guide a sampler, as functions of torch tensors.

References:
    Parmar et al., "Zero-shot Image-to-Image Translation", 2023, https://arxiv.org/abs/2302.03027, equation 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["LOSSES", "attention_map_loss", "attention_map_losses"]


def attention_map_losses(maps: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """pix2pix-zero's loss of each layer: the mean over batch and heads of ‖M - M_ref‖².

    The mean runs over all rows of the batch, so the gradient of one row carries a factor 1 / B.

    Arguments:
        maps: Cross-attention probabilities, each (B, heads, pixels, tokens).
        references: Those to keep to, of the same shapes.

    Returns:
        float32 (layers,).
    """
    return torch.stack(
        [(m.float() - r.float()).square().sum((2, 3)).mean() for m, r in zip(maps, references, strict=True)]
    )


def attention_map_loss(maps: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """pix2pix-zero's loss, the sum of `attention_map_losses`; float32 ()."""
    return attention_map_losses(maps, references).sum()


LOSSES: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]] = {"attention_maps": attention_map_loss}
"""Losses of a list of outputs and a list of references, by the name that a caller without torch gives."""
