"""Linear layers and attention, written so that their derivatives are plain products; see `gradient_forward`."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from ..errors import ExportError

__all__ = ["attention", "linear", "multi_head_attention"]


class _Linear(Function):
    """x Wᵀ + b as one product over all rows; the derivative is g W."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = x.reshape(-1, x.shape[-1]).mm(weight.t())
        return (y if bias is None else y + bias).reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (weight,), (g,) = ctx.saved_tensors, gradients
        return g.reshape(-1, g.shape[-1]).mm(weight).reshape(*g.shape[:-1], weight.shape[1]), None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.requires_grad or (bias is not None and bias.requires_grad):  # made of x, or not frozen
        y = x @ weight.transpose(-1, -2)
        return y if bias is None else y + bias
    result: Tensor = cast(Any, _Linear).apply(x, weight, bias)
    return result


def _probabilities(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ scale) over the keys that a mask of booleans lets through, or with a mask of numbers added."""
    scores = (q * scale) @ k.transpose(-1, -2)
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype != torch.bool:
        return (scores + mask).softmax(-1)
    # A row that may look at nothing gives 0, as torch's does; with -inf it would give NaN.
    seen = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return seen * mask.any(-1, keepdim=True).to(seen.dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention`."""
    if dropout_p or enable_gqa:
        raise ExportError("attention with dropout or grouped queries has no explicit form here; write it out")
    if is_causal:
        attn_mask = torch.full((q.shape[-2], k.shape[-2]), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    return _probabilities(q, k, 1 / math.sqrt(q.shape[-1]) if scale is None else scale, attn_mask) @ v


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`multi_head_attention_forward`, what `torch.nn.MultiheadAttention` is made of, of (tokens, batch, channels).

    torch's own would call its fused attention without asking whether there is another form of it.
    """
    unusual = bias_k is not None or bias_v is not None or add_zero_attn or key_padding_mask is not None
    fixed = options.get("static_k") is not None or options.get("static_v") is not None
    if unusual or fixed or use_separate_proj_weight or in_proj_weight is None or (training and dropout_p):
        raise ExportError(
            "multi-head attention with dropout, padding masks, added keys or separate projections has no form here; "
            "write it out"
        )
    if query.ndim != 3:
        raise ExportError(f"multi-head attention of {query.ndim} axes has no form here; give it a batch")
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    projected = [linear(x, w, b) for x, w, b in zip((query, key, value), in_proj_weight.chunk(3), biases, strict=True)]
    tokens, batch, width = query.shape
    # (tokens, batch, heads · channels) -> (batch, heads, tokens, channels)
    q, k, v = (x.reshape(x.shape[0], batch, num_heads, -1).permute(1, 2, 0, 3) for x in projected)
    mask = attn_mask
    if mask is not None and mask.dtype == torch.bool:
        mask = ~mask  # here True hides
    if mask is not None and mask.ndim == 3:
        mask = mask.reshape(batch, num_heads, *mask.shape[1:])
    seen = _probabilities(q, k, 1 / math.sqrt(q.shape[-1]), mask)
    result = linear((seen @ v).permute(2, 0, 1, 3).reshape(tokens, batch, width), out_proj_weight, out_proj_bias)
    if not need_weights:
        return result, None
    return result, seen.mean(1) if options.get("average_attn_weights", True) else seen
