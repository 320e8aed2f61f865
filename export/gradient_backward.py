"""Backward operators taken apart while a gradient is traced: what engines have, and nothing for the weights.

They are torch's decompositions of aten's backward operators. `torch.export`'s own table is applied too late for
some of them (those that also have a composite kernel), so this one is active *while* the graph is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ExportError
from ..networks.resample import upsample_nearest

__all__ = ["decompositions"]

aten: Any = torch.ops.aten


def _convolution(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """The derivative by the input alone.

    Without a stride it is a convolution with the weights reversed and their channels exchanged, which OpenVINO runs in
    bf16 where it has no transposed one (8 times faster with AMX). With a stride it is a transposed convolution;
    several sizes of the input then give the size of `g`: the largest is made and cut, which is right for every size,
    those not known yet included.
    """
    if mask[1] or mask[2]:
        raise ExportError("weights must be frozen before a gradient is traced; and a weight cannot depend on the input")
    axes = len(stride)
    if transposed:
        return aten.convolution(g, weight, None, stride, padding, dilation, False, [0] * axes, groups), None, None
    kernel = [int(n) for n in weight.shape[2:]]
    back = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    if all(s == 1 for s in stride) and min(back) >= 0:
        turned = _turned(weight, groups)
        return aten.convolution(g, turned, None, stride, back, dilation, False, [0] * axes, groups), None, None
    more = [s - 1 for s in stride]
    result = aten.convolution(g, weight, None, stride, padding, dilation, True, more, groups)
    for axis in range(axes):
        if stride[axis] > 1:
            result = result.narrow(2 + axis, 0, x.shape[2 + axis])
    return result, None, None


def _turned(weight: Tensor, groups: int) -> Tensor:
    """Weights (O, I / groups, …) reversed along the kernel, as (I, O / groups, …)."""
    out, inner, *kernel = weight.shape
    axes = [2 + i for i, n in enumerate(kernel) if n > 1]
    weight = weight.flip(axes) if axes else weight
    if groups == 1:
        return weight.transpose(0, 1)
    grouped = weight.reshape(groups, out // groups, inner, *kernel).transpose(1, 2)
    return grouped.reshape(groups * inner, out // groups, *kernel)


def _average_pool(
    g: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], *rest: Any
) -> Tensor:
    height, width = (*kernel, *kernel)[:2]
    ceil, _, divisor = (*rest, False, True, None)[:3] if len(rest) < 3 else rest
    if height != width or (stride and list(stride) != list(kernel)) or any(padding) or ceil or divisor:
        raise ExportError("only means over square, adjoining windows have a derivative here; write others out")
    return upsample_nearest(g, height) / (height * width)


def _slice(g: Tensor, sizes: Sequence[Any], dim: int, start: Any, end: Any, step: int) -> Tensor:
    """Padding with zeros, where torch scatters into zeros."""
    if step != 1:
        raise ExportError("slices with a step have no derivative here; reshape and select instead")
    dim %= len(sizes)
    begin = 0 if start is None else start + sizes[dim] if isinstance(start, int) and start < 0 else start
    return _pad(g, len(sizes) - 1 - dim, begin, sizes[dim] - begin - g.shape[dim])


def _select(g: Tensor, sizes: Sequence[Any], dim: int, index: Any) -> Tensor:
    dim %= len(sizes)
    return _slice(g.unsqueeze(dim), sizes, dim, index, None, 1)


def _pad(x: Tensor, after: int, low: Any, high: Any) -> Tensor:
    return aten.constant_pad_nd(x, [0, 0] * after + [low, high], 0.0)


def _negative_pad(x: Tensor, pad: Sequence[Any], value: float = 0) -> Any:
    """The derivative of a padding is a slice."""
    if not (any(pad) and all(isinstance(p, int) and p <= 0 for p in pad)):
        return NotImplemented
    for i in range(len(pad) // 2):
        axis = x.ndim - 1 - i
        x = x.narrow(axis, -pad[2 * i], x.shape[axis] + pad[2 * i] + pad[2 * i + 1])
    return x


def _silu(g: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return g * (s * (1 + x * (1 - s)))


def _softmax(g: Tensor, y: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
    return y * (g - (g * y).sum(dim, keepdim=True))


def decompositions() -> dict[Any, Callable[..., Any]]:
    """By operator; for `torch.fx.experimental.proxy_tensor.decompose`."""
    return {
        aten.convolution_backward.default: _convolution,
        aten.avg_pool2d_backward.default: _average_pool,
        aten.slice_backward.default: _slice,
        aten.select_backward.default: _select,
        aten.constant_pad_nd.default: _negative_pad,
        aten.silu_backward.default: _silu,
        aten._softmax_backward_data.default: _softmax,
    }
