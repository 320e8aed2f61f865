"""Untying: square weights that a graph uses in two ways, told apart for OpenVINO.

OpenVINO (2026.4, on a CPU) keeps the weights that it has packed for a product under their address and their shape. A
square weight W that serves x Wᵀ in the forward and g W in the backward pass is found under one key both times, and
the second product silently uses the packing of the first: prediction and loss are right, the gradient is noise. The
same happens to a convolution and a transposed convolution with one weight.

So every further use reads the weight through two slices that reverse it and reverse it back. Engines fold them when
they load; in the file the weight stays one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import onnx_ir as ir

from .constants import integers_constant

__all__ = ["cast_last", "untie_square_weights"]

_THROUGH = ("Cast", "Transpose", "DequantizeLinear")
_MOVES = ("Transpose", "Slice")
_Use: TypeAlias = "tuple[str, tuple[int, ...], tuple[int, ...]]"
_PRODUCTS = {"MatMul": "product", "Gemm": "product", "Conv": "Conv", "ConvTranspose": "ConvTranspose"}


def untie_square_weights(model: ir.Model) -> int:
    """Give every way to use a square weight but the first an address of its own; the number of those."""
    graph, count = model.graph, 0
    for value in list(graph.initializers.values()):
        shape = [] if value.const_value is None else [n for n in value.const_value.shape if isinstance(n, int)]
        if len(shape) < 2 or shape[0] != shape[1]:
            continue
        first: _Use | None = None
        made: dict[_Use, ir.Value] = {}
        for path, user, index in list(_products(value)):
            key = (_PRODUCTS[user.op_type], *_read(path, user, len(shape)))
            first = first or key
            if key == first:
                continue
            if key not in made:
                made[key] = _apart(graph, value, path, f"{value.name}/untied_{len(made)}")
                count += 1
            user.replace_input_with(index, made[key])
    return count


def cast_last(model: ir.Model) -> int:
    """Move the cast of a half-precision weight behind what turns, reverses or slices it; the number of casts moved.

    An engine folds what comes before the cast and keeps the weight small; the other way round it keeps float32, or
    turns the weight at every call.
    """
    graph, count = model.graph, 0
    casts = [node for node in graph if node.op_type == "Cast" and _is_stored(node.inputs[0])]
    while casts:
        cast = casts.pop()
        for user in [u for u, index in cast.outputs[0].uses() if index == 0 and u.op_type in _MOVES]:
            name = f"{user.outputs[0].name}/stored"
            moved = ir.node(
                user.op_type, [cast.inputs[0], *user.inputs[1:]], attributes=dict(user.attributes), name=name
            )
            moved.outputs[0].name = name
            later = ir.node("Cast", moved.outputs, attributes=dict(cast.attributes), name=f"{name}/float32")
            later.outputs[0].name = later.name
            graph.insert_before(user, [moved, later])
            ir.convenience.replace_all_uses_with(user.outputs[0], later.outputs[0])
            graph.remove(user, safe=True)
            casts.append(later)
            count += 1
        if not cast.outputs[0].uses():
            graph.remove(cast, safe=True)
    return count


def _is_stored(value: ir.Value | None) -> bool:
    while value is not None and (node := value.producer()) is not None and node.op_type in _MOVES:
        value = node.inputs[0]
    return value is not None and value.is_initializer()


def _products(value: ir.Value) -> Iterator[tuple[tuple[ir.Node, ...], ir.Node, int]]:
    """Every product over `value`, with the nodes between them."""
    stack: list[tuple[ir.Value, tuple[ir.Node, ...]]] = [(value, ())]
    while stack:
        at, path = stack.pop(0)
        for node, index in at.uses():
            if node.op_type in _PRODUCTS:
                yield path, node, index
            elif node.op_type in _THROUGH and index == 0:
                stack.append((node.outputs[0], (*path, node)))


def _read(path: tuple[ir.Node, ...], user: ir.Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How a product reads a weight: its axes in the order that all transposes together give, and the casts between."""
    axes, casts = tuple(range(rank)), list[int]()
    for node in path:
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
            axes = tuple(axes[i] for i in order)
        elif node.op_type == "Cast":
            casts.append(node.attributes["to"].as_int())
    if user.op_type == "Gemm" and bool(user.attributes.get_int("transB", 0)):
        axes = (*axes[:-2], axes[-1], axes[-2])
    return axes, tuple(casts)


def _apart(graph: ir.Graph, value: ir.Value, path: tuple[ir.Node, ...], name: str) -> ir.Value:
    """`value` reversed twice, then through copies of the nodes of `path`."""
    end = -(2**31) + 1
    limits = [
        integers_constant(graph, f"untied/{label}", [n]) for label, n in (("start", -1), ("end", end), ("axis", 0))
    ]
    nodes: list[ir.Node] = []
    at = value
    for turn in range(2):
        node = ir.node("Slice", [at, *limits, limits[0]], name=f"{name}/reversed_{turn}")
        nodes.append(node)
        at = node.outputs[0]
    for step, old in enumerate(path):
        node = ir.node(old.op_type, [at, *old.inputs[1:]], attributes=dict(old.attributes), name=f"{name}/step_{step}")
        nodes.append(node)
        at = node.outputs[0]
    for node in nodes:
        node.outputs[0].name = str(node.name)
    first = next(iter(graph))
    graph.insert_before(first, nodes)
    return at
