"""Reshapes whose target is computed from the shape of what they reshape, written as ONNX's "keep this axis"."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from .constants import integers_constant

__all__ = ["keep_axes"]


def keep_axes(model: ir.Model) -> int:
    """Replace targets like [*shape(x)[:2], 8, 40] by [0, 0, 8, 40]; the number of those.

    What torch's exporter makes of `flatten` and `unflatten` is four nodes; this is one, and needs no run to know.
    """
    graph, count = model.graph, 0
    for node in graph:
        if node.op_type != "Reshape":
            continue
        x, target = node.inputs
        extents = None if x is None or target is None else _extents(x, target)
        if extents is not None:
            node.replace_input_with(1, integers_constant(graph, "axes/" + "_".join(map(str, extents)), extents))
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
            count += 1
    if count:
        passes.RemoveUnusedNodesPass()(model)
    return count


def _extents(x: ir.Value, target: ir.Value) -> list[int] | None:
    """Entries of `target`, 0 for an axis that is kept; None where it holds anything else."""
    concat = target.producer()
    if concat is None or concat.op_type != "Concat":
        return None
    extents: list[int] = []
    for part in concat.inputs:
        numbers = None if part is None else _integers(part)
        axes = None if part is None or numbers is not None else _axes(part, x)
        if numbers is not None and 0 not in numbers:
            extents += numbers
        elif axes is not None and axes.start == len(extents):
            extents += [0] * len(axes)
        else:
            return None
    return extents


def _axes(part: ir.Value, x: ir.Value) -> range | None:
    """The axes of `x` whose extents `part` is: shape(x)[start:end]."""
    node = part.producer()
    if node is None or node.op_type != "Slice" or node.inputs[0] is None:
        return None
    shape = node.inputs[0].producer()
    if shape is None or shape.op_type != "Shape" or shape.inputs[0] is not x:
        return None
    if shape.attributes.get_int("start", 0) or "end" in shape.attributes:
        return None
    limits = [None if value is None else _integers(value) for value in node.inputs[1:]]
    found = [limit[0] for limit in limits if limit is not None and len(limit) == 1]
    if len(found) != len(limits) or found[2:] not in ([], [0], [0, 1]):
        return None
    start, end = found[:2]
    return range(start, end) if 0 <= start < end < 2**31 - 1 else None


def _integers(value: ir.Value) -> list[int] | None:
    if value.const_value is None or value.dtype != ir.DataType.INT64 or len(value.const_value.shape) != 1:
        return None
    return [int(n) for n in value.const_value.numpy()]
