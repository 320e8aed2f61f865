"""Sides traced in units: an axis of 4·n elements is given to torch as two axes, n and 4, and put together inside.

torch settles questions about sizes by algebra. That 4·n can be halved twice it sees; of a side that is only promised to
be a multiple of 4 it asks at every skip connection whether 2·((side - 1) // 2 + 1) is the side again, which was most of
the time of a trace and left checks in the graph. The stored graph takes whole sides: `join` removes the two axes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

import onnx_ir as ir
from torch import Tensor, nn

from ..errors import ExportError
from .constants import integers_constant
from .replaced import forward_replaced

__all__ = ["Multiples", "join", "joined", "place", "split"]

Multiples: TypeAlias = "Mapping[int, int]"
"""Axes of an input that are taken apart, and what their extents are multiples of."""


def place(axis: int, multiples: Multiples) -> int:
    """Where the units of an axis are, after the axes before it were taken apart."""
    return axis + sum(other < axis for other in multiples)


def split(x: Tensor, multiples: Multiples) -> Tensor:
    """An input with every axis of `multiples` as two: units, elements of a unit."""
    extents = list[int]()
    for axis, extent in enumerate(x.shape):
        extents += [extent // multiples[axis], multiples[axis]] if axis in multiples else [extent]
    return x.reshape(extents)


def _whole(x: Tensor, multiples: Multiples) -> Tensor:
    """The reverse of `split`; the multiples are numbers, so that torch multiplies by them."""
    if not multiples:
        return x
    axes = range(x.ndim - len(multiples))
    return x.reshape([x.shape[place(axis, multiples)] * multiples.get(axis, 1) for axis in axes])


def joined(module: nn.Module, multiples: Sequence[Multiples]) -> AbstractContextManager[None]:
    """While open, `module` takes inputs as `split` gives them. Names of its weights stay what they are."""
    original = module.forward

    @functools.wraps(original)
    def forward(*inputs: Tensor) -> object:
        return original(*(_whole(x, m) for x, m in zip(inputs, multiples, strict=True)))

    return forward_replaced(module, forward)


def join(graph: ir.Graph, multiples: Sequence[Multiples]) -> None:
    """Let the graph of a `joined` module take whole inputs.

    Raises:
        ExportError: The module looks at an input in another way than as a whole or for its extents.
    """
    for index, parts in enumerate(multiples):
        if not parts:
            continue
        value = graph.inputs[index]
        whole = ir.Value(name=value.name, type=value.type, shape=_shape(value, parts))
        for node, _ in tuple(value.uses()):
            if node.op_type == "Reshape":
                fresh = whole
            elif node.op_type == "Shape":
                fresh = _extents(graph, node, whole, parts)
            else:
                raise ExportError(f"the graph uses the parts of {value.name!r} in {node.op_type}")
            ir.convenience.replace_all_uses_with(node.outputs[0], fresh)
            graph.remove(node, safe=True)
        graph.inputs[index] = whole


def _shape(value: ir.Value, multiples: Multiples) -> ir.Shape | None:
    """The shape of the whole input; extents of axes that were taken apart have no name yet."""
    if value.shape is None:
        return None
    axes = range(len(value.shape) - len(multiples))
    return ir.Shape([None if axis in multiples else value.shape[place(axis, multiples)] for axis in axes])


def _extents(graph: ir.Graph, shape: ir.Node, whole: ir.Value, multiples: Multiples) -> ir.Value:
    """What `shape` gave of one axis of units or of an axis that is whole, from the whole input."""
    start, end = shape.attributes.get_int("start", 0), shape.attributes.get_int("end", 0)
    axes = {place(axis, multiples): axis for axis in range(start + 1)}
    if end - start != 1 or start not in axes:
        raise ExportError(f"the graph asks for the axes {start} to {end} of {whole.name!r} at once")
    axis = axes[start]
    extent = ir.node("Shape", [whole], attributes={"start": axis, "end": axis + 1}, name=f"{shape.name}/whole")
    graph.insert_before(shape, extent)
    if axis not in multiples:
        return extent.outputs[0]
    by = integers_constant(graph, f"units/{multiples[axis]}", [multiples[axis]])
    units = ir.node("Div", [extent.outputs[0], by], name=f"{shape.name}/units")
    graph.insert_before(shape, units)
    return units.outputs[0]
