"""Building blocks shared by the networks: norms, timestep embedding, explicit attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def group_norm(channels: int, *, eps: float = 1e-5) -> nn.GroupNorm:
    """The field's GroupNorm with 32 groups; ``eps`` is 1e-5 in UNets and 1e-6 in first stages."""
    return nn.GroupNorm(32, channels, eps=eps)


def timestep_embedding(t: Tensor, dim: int, *, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding in [cos, sin] order with frequencies exp(-ln(P) i / half).

    Arguments:
        t: Timestep indices (B,), integer or float.
        dim: Width of the embedding; an odd width is padded with a zero.

    Returns:
        float32 (B, dim).

    References:
        Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021 (guided-diffusion).
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * index / half)[None]
    embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    return nn.functional.pad(embedding, (0, 1)) if dim % 2 else embedding


def attention_map(q: Tensor, k: Tensor, *, scale: float) -> Tensor:
    """softmax(q kᵀ · scale) over (B, heads, tokens, dim): probabilities (B, heads, tokens of q, tokens of k), float32.

    The scale is shared between both factors so that half-precision products do not overflow.
    """
    root = math.sqrt(scale)
    scores = (q * root) @ (k * root).transpose(-1, -2)
    return torch.softmax(scores.float(), dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Explicit softmax(q kᵀ · scale) v over (B, heads, tokens, dim), softmax in float32.

    Written out rather than fused: the maps stay reachable and the backward pass is plain MatMuls.
    """
    return attention_map(q, k, scale=scale).to(v.dtype) @ v
