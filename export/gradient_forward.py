"""Forward operators replaced while a gradient is traced, so that their derivatives are plain operators.

torch's own derivative of a resize is a scatter, of a norm an operator with three outputs, of a linear layer over
strided input a batch of products: engines refuse these or run them slowly. Here every such operator is written with
products, sums and element-wise operators, or with a derivative of its own. The numbers are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import ExportError
from ..networks.resample import Filter, resample, resize_matrix, upsample_nearest

__all__ = ["DifferentiableForms"]


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


class _Normalize(Function):
    """(x - mean) / std over the last `axes` axes, whose derivative uses the normalised x again."""

    @staticmethod
    def forward(x: Tensor, axes: int, eps: float) -> tuple[Tensor, Tensor]:
        over = list(range(-axes, 0))
        centred = x - x.mean(over, keepdim=True)
        inverse = torch.rsqrt((centred * centred).mean(over, keepdim=True) + eps)
        return centred * inverse, inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.axes = inputs[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (y, inverse), g, over = ctx.saved_tensors, gradients[0], list(range(-ctx.axes, 0))
        along = y * (g * y).mean(over, keepdim=True)
        return inverse * (g - g.mean(over, keepdim=True) - along), None, None


def _normalize(x: Tensor, axes: int, eps: float) -> Tensor:
    result: tuple[Tensor, Tensor] = cast(Any, _Normalize).apply(x, axes, eps)
    return result[0]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result: Tensor = cast(Any, _Linear).apply(x, weight, bias)
    return result


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    batch, channels = x.shape[:2]
    y = _normalize(x.reshape(batch, num_groups, -1), 1, eps).reshape(x.shape)
    shape = (1, channels, *(1,) * (x.ndim - 2))
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    y = _normalize(x, len(normalized_shape), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p or enable_gqa:
        raise ExportError("attention with dropout or grouped queries has no explicit form here; write it out")
    scores = (q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)) @ k.transpose(-1, -2)
    if is_causal:
        scores = scores + torch.full((q.shape[-2], k.shape[-2]), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if boolean else scores + attn_mask
    return scores.softmax(-1) @ v


def _interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    if input.ndim != 4:
        raise ExportError(f"interpolate of {input.ndim} axes has no form here; give it pictures (B, C, H, W)")
    height, width = input.shape[-2:]
    if mode == "nearest":
        return upsample_nearest(input, _whole_factor(size, scale_factor, height))
    if mode not in ("bilinear", "bicubic"):
        raise ExportError(f"interpolate in mode {mode!r} has no form here; use nearest, bilinear or bicubic")
    if size is None:
        factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,) * 2
        size = (int(height * factors[0]), int(width * factors[1]))
    rows, columns = size if isinstance(size, (tuple, list)) else (size, size)
    kind: Filter = "bicubic" if mode == "bicubic" else "bilinear"
    corners = bool(align_corners)
    a = resize_matrix(rows, height, kind, antialias=antialias, align_corners=corners, like=input)
    b = resize_matrix(columns, width, kind, antialias=antialias, align_corners=corners, like=input)
    return resample(input, a, b)


def _whole_factor(size: Any, scale_factor: Any, height: Any) -> int:
    if size is not None:  # diffusers gives the size of the skip connection where that is not twice its own
        first = size[0] if isinstance(size, (tuple, list)) else size
        factor = first / height if isinstance(first, int) and isinstance(height, int) else 2
    else:
        factor = scale_factor[0] if isinstance(scale_factor, (tuple, list)) else scale_factor
    if not float(factor).is_integer():
        raise ExportError(f"nearest resize by {factor} has no form here; use a whole factor")
    return int(factor)


def _cross_entropy(x: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
    """torch's exporter scales the gradient of the mean wrongly by the number of rows; so it is written out."""
    reduction = options.pop("reduction", "mean")
    if args or any(options.values()) or target.is_floating_point() or x.ndim != 2:
        raise ExportError("cross_entropy with weights, smoothing or soft targets has no form here; write it out")
    hot = (torch.arange(x.shape[1], device=x.device)[None] == target[:, None]).to(x.dtype)
    rows = x.logsumexp(1) - (x * hot).sum(1)
    return rows.mean() if reduction == "mean" else rows.sum() if reduction == "sum" else rows


_FORMS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    functional.linear: _linear,
    functional.group_norm: _group_norm,
    functional.layer_norm: _layer_norm,
    functional.scaled_dot_product_attention: _attention,
    functional.interpolate: _interpolate,
    functional.cross_entropy: _cross_entropy,
}


class DifferentiableForms(TorchFunctionMode):
    """While it is active, the operators of this file take the place of torch's."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _FORMS.get(func, func)(*args, **(kwargs or {}))
