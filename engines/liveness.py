"""Liveness: how much memory the activations of a graph take at once, from the graph and the shapes of its inputs alone.

An engine frees an activation after its last reader. So the most that is alive at once, over the graph's order, is the
least that any engine needs; what it adds (packed weights, scratch, an arena that fits imperfectly) is said apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError
from .onnx_model import extents, with_shapes

__all__ = ["Footprint", "footprint"]

_SIZES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""Bytes of an element, by number of TensorProto.DataType."""

_FLOATS = frozenset({1, 10, 11, 16})
"""Those of floating point."""

_VIEWS = frozenset("Reshape Flatten Squeeze Unsqueeze Identity".split())
"""What gives the same bytes under another shape: engines copy nothing."""


@dataclass(frozen=True)
class Footprint:
    """What a graph needs, in bytes.

    Arguments:
        widened: Its floating-point weights as float32, which is what an engine that folds the casts keeps.
        integers: Its integer weights as they are stored, which engines keep.
        peak: The most that its activations take at once, inputs and outputs included.
        largest: Its largest activation.
        node: The node at which the peak is.
    """

    widened: int
    integers: int
    peak: int
    largest: int
    node: str


def footprint(model: Any, symbols: Mapping[str, int]) -> Footprint:
    """The footprint of a graph for one set of extents.

    Arguments:
        model: A ModelProto without its weights; it is not changed.
        symbols: The value of every dimension of its inputs.

    Raises:
        EngineError: Most shapes do not follow from those of the inputs.
    """
    fixed = type(model)()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in symbols:
                axis.dim_value = symbols[axis.dim_param]
    for value in fixed.graph.output:  # its other dimensions follow, and a name would hide that
        value.type.tensor_type.ClearField("shape")
    graph = with_shapes(fixed).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    sizes = _sizes(graph)
    constant = _constants(graph, set(weights))
    floats = {name for name, tensor in weights.items() if tensor.data_type in _FLOATS}
    widened = sum(4 * math.prod(weights[name].dims) for name in floats)
    integers = sum(math.prod(t.dims) * _SIZES.get(t.data_type, 4) for n, t in weights.items() if n not in floats)
    peak, node = _peak(graph, sizes, constant)
    largest = max((size for name, size in sizes.items() if name not in constant), default=0)
    return Footprint(widened, integers, peak, largest, node)


def _sizes(graph: Any) -> dict[str, int]:
    """Bytes of every activation; one whose shape does not follow counts as the largest that its node reads."""
    sizes: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = extents(value)
        if shape is not None and all(isinstance(extent, int) for extent in shape):
            element = _SIZES.get(value.type.tensor_type.elem_type, 4)
            sizes[value.name] = math.prod(int(extent or 0) for extent in shape) * element
    unknown = 0
    for node in graph.node:
        for name in node.output:
            if name and name not in sizes:
                sizes[name] = max((sizes.get(source, 0) for source in node.input), default=0)
                unknown += 1
    if unknown * 2 > max(1, len(sizes)):
        raise EngineError(
            f"{graph.name}: the shapes of {unknown} of {len(sizes)} tensors do not follow from its inputs; "
            "export the bundle again with onnx 1.19 or newer"
        )
    return sizes


def _constants(graph: Any, known: set[str]) -> set[str]:
    """Names that engines compute once, when they open the graph: weights and what follows from them alone."""
    found = set(known)
    for node in graph.node:
        if all(not name or name in found for name in node.input) and (node.input or node.op_type == "Constant"):
            found.update(node.output)
    return found


def _peak(graph: Any, sizes: Mapping[str, int], constant: set[str]) -> tuple[int, str]:
    """The most that is alive at once, and where."""
    nodes: list[tuple[str, list[str], list[str]]] = [
        (str(node.name or f"{node.op_type} {index}"), list(node.input), list(node.output))
        for index, node in enumerate(graph.node)
    ]
    owner: dict[str, str] = {}  # a view's bytes are its source's
    for (_, sources, results), node in zip(nodes, graph.node, strict=True):
        if node.op_type in _VIEWS and sources[0] not in constant:
            owner[results[0]] = owner.get(sources[0], sources[0])
    last: dict[str, int] = {}
    for index, (_, sources, results) in enumerate(nodes):
        last |= {owner.get(name, name): index for name in (*sources, *results)}
    inputs: list[str] = [value.name for value in graph.input]
    callers: list[str] = [*inputs, *(value.name for value in graph.output)]
    last |= {owner.get(name, name): len(nodes) for name in callers}  # from beginning to end
    alive = {name: sizes.get(name, 0) for name in inputs}
    peak, where = sum(alive.values()), "the inputs"
    for index, (label, _, results) in enumerate(nodes):
        fresh = (name for name in results if name and name not in constant and name not in owner)
        alive |= {name: sizes.get(name, 0) for name in fresh}
        now = sum(alive.values())
        if now > peak:
            peak, where = now, label
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > index}
    return peak, where
