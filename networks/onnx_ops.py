"""ONNX operators in torch, each differentiable by autograd: those that exported diffusion networks use.

A function takes the inputs of a node (None for one that is left out) and its attributes as plain Python values, and
gives a tensor, or a tuple of them. Shapes are int64 tensors, as in ONNX.

References:
    https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import EngineError

__all__ = ["OPERATORS", "Operator"]

Operator: TypeAlias = "Callable[..., Tensor | tuple[Tensor, ...]]"

_TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float32,  # float16: what is computed is float32
    11: torch.float64,
    16: torch.float32,  # bfloat16
}


def _unknown(form: str) -> EngineError:
    return EngineError(f"torch has no form for {form}; use a backend but 'torch'")


def _ints(shape: Tensor | None) -> list[int]:
    return [] if shape is None else [int(n) for n in shape.reshape(-1).tolist()]


def _cast(x: Tensor, **attributes: Any) -> Tensor:
    return x.to(_TYPES[attributes["to"]])


def _reshape(x: Tensor, shape: Tensor, **attributes: Any) -> Tensor:
    sizes = _ints(shape)
    if not attributes.get("allowzero"):
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


def _expand(x: Tensor, shape: Tensor, **_: Any) -> Tensor:
    return x.expand(cast(Any, torch).broadcast_shapes(x.shape, _ints(shape)))


def _slice(
    x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None, **_: Any
) -> Tensor:
    first, last = _ints(starts), _ints(ends)
    over = _ints(axes) or list(range(len(first)))
    for start, end, axis, step in zip(first, last, over, _ints(steps) or [1] * len(first), strict=True):
        indices = range(x.shape[axis])[slice(start, None if step < 0 and end < -x.shape[axis] else end, step)]
        if step > 0:
            index = [slice(None)] * x.ndim
            index[axis] = slice(indices.start, max(indices.start, indices.stop), step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(list(indices), dtype=torch.int64, device=x.device))
    return x


def _gather(x: Tensor, indices: Tensor, **attributes: Any) -> Tensor:
    axis = attributes.get("axis", 0) % x.ndim
    index = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _split(x: Tensor, sizes: Tensor | None = None, **attributes: Any) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return torch.split(x, _ints(sizes), dim=axis)
    return x.tensor_split(attributes["num_outputs"], dim=axis)


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def run(x: Tensor, axes: Tensor | None = None, **attributes: Any) -> Tensor:
        over = _ints(axes) or list(attributes.get("axes") or [])
        if not over:
            if attributes.get("noop_with_empty_axes"):
                return x
            over = list(range(x.ndim))
        return function(x, dim=over, keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _squeeze(x: Tensor, axes: Tensor | None = None, **_: Any) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_ints(axes)))


def _unsqueeze(x: Tensor, axes: Tensor, **_: Any) -> Tensor:
    over = _ints(axes)
    for axis in sorted(a % (x.ndim + len(over)) for a in over):
        x = x.unsqueeze(axis)
    return x


def _shape(x: Tensor, **attributes: Any) -> Tensor:
    sizes = list(x.shape)[attributes.get("start", 0) : attributes.get("end")]
    return torch.tensor(sizes, dtype=torch.int64, device=x.device)


def _pads(attributes: Mapping[str, Any], axes: int) -> list[int]:
    """The begins and ends of an operator over pictures, as torch's `pad` takes them."""
    pads = list(attributes.get("pads") or [0] * 2 * axes)
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
        raise _unknown(f"pictures with auto_pad={attributes['auto_pad']!r}")
    return [n for i in reversed(range(axes)) for n in (pads[i], pads[i + axes])]


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, **attributes: Any) -> Tensor:
    axes = x.ndim - 2
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    pads = _pads(attributes, axes)
    x = functional.pad(x, pads) if any(pads) else x
    stride, dilation = (tuple(attributes.get(k) or [1] * axes) for k in ("strides", "dilations"))
    return run(x, weight, bias, stride, 0, dilation, attributes.get("group", 1))


def _transposed_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, **attributes: Any) -> Tensor:
    axes = x.ndim - 2
    run = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[axes - 1]
    pads = _pads(attributes, axes)
    stride, dilation = (tuple(attributes.get(k) or [1] * axes) for k in ("strides", "dilations"))
    more = tuple(attributes.get("output_padding") or [0] * axes)
    y = run(x, weight, bias, stride, 0, more, attributes.get("group", 1), dilation)
    return functional.pad(y, [-n for n in pads]) if any(pads) else y


def _average_pool(x: Tensor, **attributes: Any) -> Tensor:
    pads = _pads(attributes, x.ndim - 2)
    if any(pads) or attributes.get("ceil_mode"):
        raise _unknown("AveragePool with padding")
    kernel = attributes["kernel_shape"]
    return functional.avg_pool2d(x, tuple(kernel), tuple(attributes.get("strides") or [1] * len(kernel)))


def _resize(
    x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None, **attributes: Any
) -> Tensor:
    kind = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[attributes.get("mode", "nearest")]
    out = _ints(sizes)[2:] if sizes is not None else []
    if not out and scales is not None:
        out = [math.floor(n * float(s)) for n, s in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    if kind == "nearest":
        return functional.interpolate(x, size=out, mode=kind)
    corners = attributes.get("coordinate_transformation_mode") == "align_corners"
    return functional.interpolate(x, size=out, mode=kind, align_corners=corners)


def _layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, **attributes: Any) -> Tensor:
    axis = attributes.get("axis", -1) % x.ndim
    return functional.layer_norm(x, x.shape[axis:], scale, bias, attributes.get("epsilon", 1e-5))


def _group_norm(x: Tensor, scale: Tensor, bias: Tensor, **attributes: Any) -> Tensor:
    return functional.group_norm(x, attributes["num_groups"], scale, bias, attributes.get("epsilon", 1e-5))


def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, **attributes: Any) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))


def _gemm(a: Tensor, b: Tensor, c: Tensor | None = None, **attributes: Any) -> Tensor:
    a = a.transpose(0, 1) if attributes.get("transA") else a
    b = b.transpose(0, 1) if attributes.get("transB") else b
    y = attributes.get("alpha", 1.0) * (a @ b)
    return y if c is None else y + attributes.get("beta", 1.0) * c


def _dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, **attributes: Any) -> Tensor:
    shape = [1] * x.ndim
    if scale.ndim:
        shape[attributes.get("axis", 1)] = -1
    centred = x.float() if zero is None else x.float() - zero.float().reshape(shape)
    return centred * scale.reshape(shape)


def _pad(x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, **attributes: Any) -> Tensor:
    if attributes.get("mode", "constant") != "constant":
        raise _unknown(f"Pad with mode={attributes['mode']!r}")
    given, over = _ints(pads), _ints(axes) or list(range(x.ndim))
    plan = [0] * 2 * x.ndim
    for i, axis in enumerate(over):
        place = 2 * (x.ndim - 1 - axis % x.ndim)
        plan[place : place + 2] = given[i], given[i + len(over)]
    return functional.pad(x, plan, value=0.0 if value is None else float(value))


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None, **_: Any) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _range(start: Tensor, limit: Tensor, delta: Tensor, **_: Any) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


def _constant_of_shape(shape: Tensor, **attributes: Any) -> Tensor:
    value = attributes.get("value")
    filled = torch.zeros(1) if value is None else torch.from_numpy(value.numpy().copy())
    return filled.to(shape.device).expand(_ints(shape)).clone()


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def run(*values: Tensor, **_: Any) -> Tensor:
        result = values[0]
        for value in values[1:]:
            result = function(result, value)
        return result

    return run


def _plain(function: Callable[..., Tensor]) -> Operator:
    """An operator without attributes."""
    return lambda *values, **_: function(*values)


OPERATORS: dict[str, Operator] = {
    **{name: _plain(getattr(torch, name.lower())) for name in ("Abs", "Cos", "Erf", "Exp", "Floor", "Log", "Neg")},
    **{name: _plain(getattr(torch, name.lower())) for name in ("Reciprocal", "Relu", "Round", "Sigmoid", "Sign")},
    **{name: _plain(getattr(torch, name.lower())) for name in ("Sin", "Sqrt", "Tanh", "Where")},
    **{name: _plain(getattr(torch, name.lower())) for name in ("Greater", "Less", "MatMul")},
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda *values, **attributes: torch.cat(values, dim=attributes["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "DequantizeLinear": _dequantize,
    "Div": lambda a, b, **_: a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc"),
    "Equal": _plain(torch.eq),
    "Expand": _expand,
    "Flatten": lambda x, **a: x.reshape(math.prod(x.shape[: a.get("axis", 1)]), -1),
    "Gather": _gather,
    "Gelu": lambda x, **attributes: functional.gelu(x, approximate=attributes.get("approximate", "none")),
    "Gemm": _gemm,
    "GreaterOrEqual": _plain(torch.ge),
    "GroupNormalization": _group_norm,
    "Identity": lambda x, **_: x,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LessOrEqual": _plain(torch.le),
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Mod": _plain(torch.remainder),
    "Mul": _plain(torch.mul),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "Pad": _pad,
    "Pow": lambda x, y, **_: torch.pow(x, y.to(x.dtype)),
    "Range": _range,
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "ReduceSumSquare": _reduce(lambda x, **options: torch.sum(x * x, **options)),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Size": lambda x, **_: torch.tensor(x.numel(), device=x.device),
    "Slice": _slice,
    "Softmax": lambda x, **attributes: torch.softmax(x, dim=attributes.get("axis", -1)),
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Sum": _fold(torch.add),
    "Transpose": lambda x, **a: x.permute(a.get("perm") or list(reversed(range(x.ndim)))),
    "Unsqueeze": _unsqueeze,
}
"""By the operator's name; the domain is ONNX's own."""
