"""Forward operators replaced while a gradient is traced, so that their derivatives are plain operators.

torch's own derivative of a resize is a scatter, of a norm an operator with three outputs, of a linear layer over
strided input a batch of products: engines refuse these or run them slowly. Here every such operator is written with
products, sums and element-wise operators, or with a derivative of its own. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import ExportError
from ..networks.resample import Filter, resample, resize_matrix, upsample_nearest
from .gradient_attention import attention, linear, multi_head_attention

__all__ = ["DifferentiableForms"]


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
    sides = input.shape[-2:]
    if mode == "nearest":
        return upsample_nearest(input, _whole_factor(size, scale_factor, sides))
    if mode not in ("bilinear", "bicubic"):
        raise ExportError(f"interpolate in mode {mode!r} has no form here; use nearest, bilinear or bicubic")
    scales: Sequence[float | None] = (None, None)
    if size is None:
        factors = _pair(scale_factor)
        size = [int(side * factor) for side, factor in zip(sides, factors, strict=True)]
        if not recompute_scale_factor:  # torch steps by what it was told, not by what the whole sizes come to
            scales = [1 / factor for factor in factors]
    kind: Filter = "bicubic" if mode == "bicubic" else "bilinear"
    a, b = (
        resize_matrix(out, side, kind, antialias=antialias, align_corners=bool(align_corners), like=input, scale=scale)
        for out, side, scale in zip(_pair(size), sides, scales, strict=True)
    )
    return resample(input, a, b)


def _pair(value: Any) -> tuple[Any, Any]:
    rows, columns = value if isinstance(value, (tuple, list, torch.Size)) else (value, value)
    return rows, columns


def _whole_factor(size: Any, scale_factor: Any, sides: Sequence[Any]) -> int:
    """What a nearest resize repeats pixels by. Of sizes that are symbols, only what algebra tells is known."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    if size is None:
        rows, columns = _pair(scale_factor)
        if rows == columns and float(rows).is_integer():
            return int(rows)
        raise ExportError(f"nearest resize by {rows} and {columns} has no form here; use one whole factor")
    wanted = _pair(size)
    for factor in range(1, 17):
        if all(statically_known_true(out == factor * side) for out, side in zip(wanted, sides, strict=True)):
            return factor
    raise ExportError(
        f"nearest resize of {tuple(sides)} to {tuple(wanted)} has no form here: no whole factor is known; "
        "give a scale_factor, or the dimension a multiple that the network can halve"
    )


def _cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """torch's exporter scales the gradient of the mean wrongly by the number of rows; so it is written out.

    Targets are classes, none of which is ignored.
    """
    unusual = weight is not None or label_smoothing != 0.0 or ignore_index != -100 or target.is_floating_point()
    if unusual or size_average is not None or reduce is not None or x.ndim != 2:
        raise ExportError("cross_entropy with weights, smoothing or soft targets has no form here; write it out")
    hot = (torch.arange(x.shape[1], device=x.device)[None] == target[:, None]).to(x.dtype)
    rows = x.logsumexp(1) - (x * hot).sum(1)
    return rows.mean() if reduction == "mean" else rows.sum() if reduction == "sum" else rows


_FORMS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    functional.linear: linear,
    functional.group_norm: _group_norm,
    functional.layer_norm: _layer_norm,
    functional.scaled_dot_product_attention: attention,
    functional.multi_head_attention_forward: multi_head_attention,
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
