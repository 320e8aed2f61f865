"""Work on a traced graph: clean, name the dimensions, store weights in fewer bits, write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer

from ..engines.binding import Array, Binding
from ..engines.precision import Precision

__all__ = ["clean", "name_dimensions", "save", "store", "store_rows_int8"]

SMALL = 1024
"""Weights with fewer elements stay float32: they are norms and biases, and nothing is gained."""

_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_FP16_MAX = 65504.0


def clean(model: ir.Model) -> None:
    """Fold what is constant, drop what is unused and where it came from; weights are not copied."""
    _transpose_weights(model)
    optimizer.optimize_ir(model)
    passes.ClearMetadataAndDocStringPass()(model)
    functions: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for function in functions:
        function.metadata_props.clear()
        for node in function:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.name = "network"


def _extents(tensor: ir.TensorProtocol) -> list[int]:
    """The shape of a weight, which has no symbolic dimensions."""
    return [n for n in tensor.shape if isinstance(n, int)]


def _lazy(
    source: ir.TensorProtocol, dtype: ir.DataType, change: Callable[[Array], Array], shape: list[int]
) -> ir.LazyTensor:
    """`change` of a weight, made when it is written and dropped again."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(change(source.numpy())), dtype=dtype), dtype=dtype, shape=ir.Shape(shape)
    )


def _replace(graph: ir.Graph, value: ir.Value, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer in place of the weight `value`, which must have no users left."""
    if value.name is not None:
        graph.initializers.pop(value.name)
    fresh = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(_extents(tensor)), const_value=tensor)
    graph.register_initializer(fresh)
    return fresh


def _transpose_weights(model: ir.Model) -> None:
    """Turn Transpose(weight) into a weight that is stored transposed, so that no engine has to at each start."""
    graph = model.graph
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" and node.inputs else None
        if source is None or source.name not in graph.initializers or source.const_value is None:
            continue
        if len(source.uses()) > 1:  # tied to a table, say; engines fold it
            continue
        perm = node.attributes.get_ints("perm") or tuple(reversed(range(len(source.const_value.shape))))
        extents = [_extents(source.const_value)[axis] for axis in perm]
        tensor = _lazy(source.const_value, source.const_value.dtype, lambda a, p=tuple(perm): a.transpose(p), extents)  # type: ignore[misc]
        name, output = str(source.name), node.outputs[0]
        node.replace_input_with(0, None)
        fresh = _replace(graph, source, name, tensor)
        ir.convenience.replace_all_uses_with(output, fresh)
        graph.remove(node, safe=True)


def name_dimensions(model: ir.Model, inputs: tuple[Binding, ...], outputs: tuple[Binding, ...]) -> None:
    """Give the graph's inputs and outputs the bindings' dimension names; inner shapes are left to the engines."""
    for value, binding in zip((*model.graph.inputs, *model.graph.outputs), (*inputs, *outputs), strict=True):
        value.shape = ir.Shape(binding.shape)
    boundary = {id(v) for v in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in boundary:
                value.shape = None
                value.type = None


def _large_weights(model: ir.Model) -> list[ir.Value]:
    return [
        v
        for v in model.graph.initializers.values()
        if v.const_value is not None
        and v.const_value.dtype == ir.DataType.FLOAT
        and v.const_value.size >= SMALL
        and len(v.const_value.shape) >= 2
        and sum(n > 1 for n in _extents(v.const_value)) >= 2  # not a bias spread over axes
    ]


def store(model: ir.Model, precision: Precision) -> tuple[str, ...]:
    """Store large weights in `precision`, each followed by a Cast to float32; arithmetic stays float32.

    Returns:
        Names of the large weights that stay float32 because they do not fit float16.
    """
    if precision == "fp32":
        return ()
    kept = []
    for value in _large_weights(model):
        tensor = value.const_value
        assert tensor is not None
        if precision == "fp16" and not _fits_fp16(tensor.numpy()):
            kept.append(str(value.name))
            continue
        dtype = _TYPES[precision]
        numpy_type = dtype.numpy()
        small = _lazy(tensor, dtype, lambda a, t=numpy_type: a.astype(t), _extents(tensor))  # type: ignore[misc]
        _behind(model.graph, value, small, "Cast", [], {"to": ir.DataType.FLOAT})
    return tuple(kept)


def _fits_fp16(array: Array) -> bool:
    return bool(array.size == 0 or max(-float(array.min()), float(array.max())) <= _FP16_MAX)


def store_rows_int8(model: ir.Model) -> tuple[str, ...]:
    """Store tables and matrices as symmetric int8 rows with a float32 scale each, behind DequantizeLinear.

    A row is what gives one output: of a table (Gather) the entry, of a matrix (MatMul) the column. Arithmetic
    stays float32, so every engine that knows DequantizeLinear runs it, TensorRT included.

    Returns:
        Names of the large weights that stay float32, because they are neither tables nor matrices.
    """
    kept = []
    for value in _large_weights(model):
        tensor = value.const_value
        assert tensor is not None
        axis = _row_axis(value)
        if axis is None or len(tensor.shape) != 2:
            kept.append(str(value.name))
            continue
        rows, scale = _rows_int8(tensor.numpy(), axis)
        extra = ir.Value(
            name=f"{value.name}.scale",
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(scale.shape),
            const_value=ir.tensor(scale),
        )
        model.graph.register_initializer(extra)
        _behind(model.graph, value, ir.tensor(rows), "DequantizeLinear", [extra], {"axis": axis})
    return tuple(kept)


def _rows_int8(array: Array, axis: int) -> tuple[Array, Array]:
    """int8 rows along `axis` and their float32 scales; searching better clips than the largest value gains nothing."""
    along = 1 - axis
    scale = np.maximum(np.abs(array).max(axis=along, keepdims=True), np.float32(1e-12)) / np.float32(127)
    return np.rint(array / scale).astype(np.int8), scale.squeeze(along).astype(np.float32)


def _row_axis(value: ir.Value) -> int | None:
    """The axis along which the rows of a weight lie, None if its users disagree or are of another kind."""
    axes: set[int | None] = set()
    for node, index in value.uses():
        if node.op_type == "Gather" and index == 0 and node.attributes.get_int("axis", 0) == 0:
            axes.add(0)
        elif node.op_type == "MatMul" and index == 1:
            axes.add(1)
        elif node.op_type == "Gemm" and index == 1:
            axes.add(0 if node.attributes.get_int("transB", 0) else 1)
        elif node.op_type == "Slice" and index == 0:  # the first rows of a position table
            axes.add(0)
        else:
            axes.add(None)
    return axes.pop() if len(axes) == 1 else None


def _behind(
    graph: ir.Graph,
    value: ir.Value,
    stored: ir.TensorProtocol,
    op_type: str,
    extra: list[ir.Value],
    attributes: dict[str, int],
) -> None:
    """Replace a weight by `stored` and an operator that gives float32 again."""
    name = str(value.name)
    users = [(node, index) for node, index in value.uses()]
    first = min((node for node, _ in users), key=_order(graph))
    fresh = ir.Value(name=name, type=ir.TensorType(stored.dtype), shape=ir.Shape(_extents(stored)), const_value=stored)
    node = ir.node(op_type, [fresh, *extra], attributes=attributes, name=f"{name}/float32")
    output = node.outputs[0]
    output.name = f"{name}/float32"
    for user, index in users:
        user.replace_input_with(index, output)
    graph.initializers.pop(name)
    graph.register_initializer(fresh)
    graph.insert_before(first, node)


def _order(graph: ir.Graph) -> Callable[[ir.Node], int]:
    position = {id(node): index for index, node in enumerate(graph)}
    return lambda node: position[id(node)]


def save(model: ir.Model, graph: Path) -> tuple[Path, ...]:
    """Write the graph, and its weights into one file ``<stem>.weights`` beside it, one weight in memory at a time.

    Returns:
        The weights file, or nothing for a graph without large weights.
    """
    weights = graph.with_suffix(".weights")
    ir.save(model, graph, external_data=weights.name, size_threshold_bytes=256, alignment=64)
    return (weights,) if weights.exists() else ()
