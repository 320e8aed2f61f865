"""Compute types: a stored graph, which computes in float32, rewritten so that its products compute in half precision.

A bundle's graph has half-precision weights, a Cast to float32 behind each, and float32 everywhere else. A strongly
typed builder takes that at its word and computes in float32. So the types are moved here:

- **products** (matrices, convolutions) read and write half precision, their weights as they are stored;
- what only moves or bends values (sums, reshapes, activations) stays half where all that it reads is half;
- **islands** compute in float32: norms, softmax, reductions, exponentials, divisions, resampling, and all that mixes
  both, such as the difference of an activation and its mean;
- inputs and outputs of the network stay float32.

With `products_only` all but products is an island: what the manifest asks for with "*" in ``keep_fp32``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .half_weights import HalfWeights
from .onnx_model import onnx, with_shapes
from .precision import Precision

__all__ = ["PRODUCTS", "Retyped", "retype"]

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
"""What is worth computing in half precision."""

_FOLLOWS = frozenset(
    "Add Sub Mul Neg Relu LeakyRelu Sigmoid HardSigmoid Tanh Gelu Erf Clip Min Max Where Concat Split Slice Reshape "
    "Flatten Transpose Squeeze Unsqueeze Expand Tile Pad Gather GatherElements GatherND Identity DepthToSpace "
    "SpaceToDepth MaxPool Trilu QuantizeLinear".split()
)
"""What is half precision where everything that it reads is: it loses no more than the half that it reads has lost."""

_FLOAT, _HALF = 1, {"fp16": 10, "bf16": 16}
"""Numbers of TensorProto.DataType."""


@dataclass
class Retyped:
    """What `retype` did.

    Arguments:
        model: The graph.
        halves: How many products compute in half precision.
        kept: Names of products that stay float32, because a weight of theirs does not fit float16.
        sources: The stored weight that each turned one was made of, by its name.
    """

    model: Any
    halves: int = 0
    kept: list[str] = field(default_factory=list[str])
    sources: dict[str, str] = field(default_factory=dict[str, str])


def retype(model: Any, precision: Precision, weights: HalfWeights, *, products_only: bool = False) -> Retyped:
    """Move the types of a stored graph.

    Arguments:
        model: A ModelProto; it is not changed.
        precision: "fp16" or "bf16"; with "fp32" the graph stays as it is.
        weights: Where weights are turned into that precision that are not stored in it.
        products_only: Everything but products stays float32.
    """
    done = Retyped(with_shapes(model), sources=weights.sources)
    if precision != "fp32":
        _Types(done, precision, weights, products_only).run()
        del done.model.graph.value_info[:]
    return done


class _Types:
    """One pass over a graph in its order. A float32 tensor keeps its name; its half twin is called ``<name>/half``."""

    def __init__(self, done: Retyped, precision: Precision, weights: HalfWeights, products_only: bool) -> None:
        self.done, self.graph, self.weights = done, done.model.graph, weights
        self.half, self.products_only = _HALF[precision], products_only
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}
        values = (*self.graph.input, *self.graph.value_info, *self.graph.output)
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.types |= {tensor.name: tensor.data_type for tensor in self.graph.initializer}
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.native: set[str] = set()  # float tensors of the stored graph that are now computed in half
        self.single = {v.name for v in self.graph.input} | self.stored.keys()  # names that exist as they were
        self.twins: dict[str, str] = {}
        self.nodes: list[Any] = []

    def run(self) -> None:
        for node in self.graph.node:
            halves = self._halves(node)
            for name in _captured(node):
                self._float(name)
            if halves is None:
                for name in node.input:
                    self._float(name)
                self.nodes.append(node)
                self.single.update(node.output)
            else:
                self._to_half(node, halves)
        for value in self.graph.output:
            self._float(value.name)
        nodes = _needed(self.nodes, {value.name for value in self.graph.output})
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {name for node in nodes for name in (*node.input, *_captured(node))}
        kept = [t for t in self.graph.initializer if t.name in used]
        added = [t for t in self.weights.tensors if t.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend([*kept, *added])

    def _halves(self, node: Any) -> dict[str, str] | None:
        """The half twins of the floats that a node reads; None for one that computes in float32."""
        floats = [n for n in dict.fromkeys(node.input) if n and self.types.get(n) == _FLOAT]
        variable = [name for name in floats if not self._constant(name)]
        follows = node.op_type in _FOLLOWS or (node.op_type == "Div" and self._constant(node.input[1]))
        if node.domain not in ("", "ai.onnx") or not floats:
            return None
        if node.op_type in PRODUCTS:
            twins = {name: self._twin(name) for name in floats}
        elif follows and not self.products_only and variable and self.native.issuperset(variable):
            twins = {name: self._twin(name) for name in floats}
        else:
            return None
        missing = [name for name, twin in twins.items() if twin is None]
        if missing and node.op_type in PRODUCTS:
            self.done.kept.append(node.name or node.output[0])
        return None if missing else {name: twin for name, twin in twins.items() if twin is not None}

    def _to_half(self, node: Any, twins: dict[str, str]) -> None:
        self.done.halves += node.op_type in PRODUCTS
        fresh = type(node)()
        fresh.CopyFrom(node)
        for index, name in enumerate(node.input):
            fresh.input[index] = twins.get(name, name)
        for index, name in enumerate(node.output):
            if self.types.get(name) == _FLOAT:
                fresh.output[index] = f"{name}/half"
                self.native.add(name)
                self.twins[name] = f"{name}/half"
            else:
                self.single.add(name)
        self.nodes.append(fresh)

    def _constant(self, name: str) -> bool:
        """A weight, or a weight behind its Cast or DequantizeLinear."""
        node = self.producer.get(name)
        return name in self.stored or (
            node is not None and node.op_type in ("Cast", "DequantizeLinear") and node.input[0] in self.stored
        )

    def _twin(self, name: str) -> str | None:
        """The name of a tensor's half twin, made where it is not there yet; None if it does not fit."""
        if name not in self.twins:
            node, twin = self.producer.get(name), f"{name}/half"
            if name in self.stored:
                return self._weight(name, twin)
            if node is not None and node.op_type == "Cast" and node.input[0] in self.stored:
                source = self.stored[node.input[0]]
                if source.data_type != self.half:
                    return self._weight(source.name, twin, name)
                twin = source.name
            elif node is not None and node.op_type == "DequantizeLinear":
                scale = self._twin(node.input[1])
                if scale is None:
                    return None
                fresh = type(node)()
                fresh.CopyFrom(node)
                fresh.input[1], fresh.output[0] = scale, twin
                self.nodes.append(fresh)
            else:
                self._cast(name, twin, self.half)
            self.twins[name] = twin
        return self.twins[name]

    def _weight(self, name: str, twin: str, value: str | None = None) -> str | None:
        """A weight turned into half precision ahead of time."""
        if not self.weights.add(self.stored[name], twin, self.half):
            return None
        self.twins[value or name] = twin
        return twin

    def _float(self, name: str) -> None:
        """Have the float32 form of a tensor that is computed in half."""
        if name in self.native and name not in self.single:
            self._cast(self.twins[name], name, _FLOAT)
            self.single.add(name)

    def _cast(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(onnx().helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=kind))


def _captured(node: Any) -> Iterator[str]:
    """Names that the subgraphs of a node may read from outside."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            for inner in graph.node:
                yield from inner.input
                yield from _captured(inner)
            yield from (value.name for value in graph.output)


def _needed(nodes: list[Any], wanted: set[str]) -> list[Any]:
    """The nodes that the outputs depend on: without the Casts of weights that are now read as they are stored."""
    kept: list[Any] = []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update((*node.input, *_captured(node)))
    return kept[::-1]
