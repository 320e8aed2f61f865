"""Work on a traced graph: clean, name the dimensions, store weights in fewer bits, write."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import optimizer
from torch import Tensor

from ..engines.binding import Array, Binding
from ..engines.precision import Precision
from .patterns import quick_patterns
from .reshapes import keep_axes
from .share import THRESHOLD, share_weights

__all__ = ["clean", "name_dimensions", "release", "save", "store", "store_rows_int8"]

SMALL = 1024
"""Weights with fewer elements stay float32: they are norms and biases, and nothing is gained."""

_TYPES = {"fp16": (ir.DataType.FLOAT16, torch.float16), "bf16": (ir.DataType.BFLOAT16, torch.bfloat16)}


def clean(model: ir.Model) -> None:
    """Fold what is constant, drop what is unused and where it came from; weights are not copied."""
    _transpose_weights(model)
    with quick_patterns():
        optimizer.optimize_ir(model, should_fold=_folds)
    keep_axes(model)
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


def _folds(node: ir.Node) -> bool | None:
    """Not what turns a weight that is also used as it is: it would be stored twice."""
    value = node.inputs[0] if node.op_type in ("Transpose", "Slice") and node.inputs else None
    if value is None or not value.is_initializer() or value.const_value is None or value.const_value.size < SMALL:
        return None
    return False if len(value.uses()) > 1 else None


def _extents(tensor: ir.TensorProtocol) -> list[int]:
    """The shape of a weight, which has no symbolic dimensions."""
    return [n for n in tensor.shape if isinstance(n, int)]


def _lazy(
    source: ir.TensorProtocol, dtype: ir.DataType, change: Callable[[Tensor], Tensor], shape: list[int]
) -> ir.LazyTensor:
    """`change` of a weight, made when it is written and dropped again; torch does it on all cores."""

    def make() -> ir.TensorProtocol:
        return ir.Tensor(_array(change(_tensor(source)).contiguous()), dtype=dtype)

    return ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape))


def _tensor(weight: ir.TensorProtocol) -> Tensor:
    """A float32 weight as torch sees it, without a copy."""
    array = weight.numpy()
    fit = array.flags.writeable and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if fit else array.copy())


def _array(tensor: Tensor) -> Array:
    """A tensor as NumPy sees it; NumPy itself has no bfloat16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ir.DataType.BFLOAT16.numpy())
    return tensor.numpy()


def _replace(graph: ir.Graph, value: ir.Value, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer in place of the weight `value`, which must have no users left."""
    if value.name is not None:
        graph.initializers.pop(value.name)
    value.const_value = None
    fresh = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(_extents(tensor)), const_value=tensor)
    graph.register_initializer(fresh)
    return fresh


def _transpose_weights(model: ir.Model) -> None:
    """Turn Transpose(weight) into a weight that is stored transposed, so that no engine has to at each start.

    A matrix that products also use as it is (a gradient does) is stored transposed too, so that it is the same bytes in
    the graphs with and without the gradient, and turned back for those.
    """
    graph = model.graph
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" and node.inputs else None
        if source is None or source.name not in graph.initializers or source.const_value is None:
            continue
        perm = node.attributes.get_ints("perm") or tuple(reversed(range(len(source.const_value.shape))))
        others = [(user, index) for user, index in source.uses() if user is not node]
        if others and not (tuple(perm) == (1, 0) and all(_uses_matrix(user) for user, _ in others)):
            continue  # tied to a table, say; engines fold it
        extents = [_extents(source.const_value)[axis] for axis in perm]
        tensor = _lazy(source.const_value, source.const_value.dtype, lambda w, p=tuple(perm): w.permute(p), extents)  # type: ignore[misc]
        name, output = str(source.name), node.outputs[0]
        node.replace_input_with(0, None)
        back = [(user, index) for user, index in others if user.op_type != "Transpose"]
        turned = [user for user, _ in others if user.op_type == "Transpose"]
        for user, index in others:
            user.replace_input_with(index, None)
        fresh = _replace(graph, source, name, tensor)
        ir.convenience.replace_all_uses_with(output, fresh)
        for user in turned:
            ir.convenience.replace_all_uses_with(user.outputs[0], fresh)
            graph.remove(user, safe=True)
        if back:
            turn = ir.node("Transpose", [fresh], attributes={"perm": [1, 0]}, name=f"{name}/turned")
            turn.outputs[0].name = f"{name}/turned"
            graph.insert_before(next(iter(graph)), turn)  # a product may come before `node`
            for user, index in back:
                user.replace_input_with(index, turn.outputs[0])
        graph.remove(node, safe=True)


def _uses_matrix(user: ir.Node) -> bool:
    """A product with the matrix as it is, or another transposition of it."""
    return user.op_type == "MatMul" or (
        user.op_type == "Transpose" and tuple(user.attributes.get_ints("perm") or (1, 0)) == (1, 0)
    )


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
        if precision == "fp16" and not _fits_fp16(_tensor(tensor)):
            kept.append(str(value.name))
            continue
        dtype, torch_type = _TYPES[precision]
        small = _lazy(tensor, dtype, lambda w, t=torch_type: w.to(t), _extents(tensor))  # type: ignore[misc]
        _behind(model.graph, value, small, "Cast", [], {"to": ir.DataType.FLOAT})
    return tuple(kept)


def _fits_fp16(weight: Tensor) -> bool:
    low, high = torch.aminmax(weight)
    return max(-float(low), float(high)) <= torch.finfo(torch.float16).max


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
    value.const_value = None
    graph.register_initializer(fresh)
    graph.insert_before(first, node)


def _order(graph: ir.Graph) -> Callable[[ir.Node], int]:
    position = {id(node): index for index, node in enumerate(graph)}
    return lambda node: position[id(node)]


def save(model: ir.Model, graph: Path, *, shares: Path | None = None) -> tuple[Path, ...]:
    """Write the graph, and its weights into one file ``<stem>.weights`` beside it, one weight in memory at a time.

    Arguments:
        model: The graph.
        graph: Its file.
        shares: The file of another graph in the same folder, whose stored weights are used where they are the same.

    Returns:
        Its files of weights: none for a graph without large weights, and the other graph's last.

    Raises:
        OSError: The disk is full.
    """
    shared = () if shares is None else share_weights(model, shares)
    weights = graph.with_suffix(".weights")
    own = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.const_value.nbytes > THRESHOLD
        and not isinstance(value.const_value, ir.ExternalTensor)
    ]
    tensors = [value.const_value for value in own if value.const_value is not None]
    if tensors:
        written = ir.external_data.convert_tensors_to_external(tensors, graph.parent, weights.name, alignment=64)
        _check_whole(weights, written)
        for value, tensor in zip(own, written, strict=True):
            value.const_value = tensor
    ir.save(model, graph)
    return (*((weights,) if tensors else ()), *(graph.with_name(name) for name in shared))


def _check_whole(weights: Path, written: Sequence[ir.TensorProtocol]) -> None:
    """Raise `OSError` for weights that end early: NumPy's tofile does not tell when its last block is refused."""
    ends = [(t.offset or 0) + (t.length or 0) for t in written if isinstance(t, ir.ExternalTensor)]
    if weights.stat().st_size < max(ends, default=0):
        raise OSError(errno.ENOSPC, "the weights were cut short", str(weights))


def release(model: ir.Model) -> None:
    """Drop the weights of a graph that was written; onnxscript's rules remember the last graph that they saw."""
    for value in model.graph.initializers.values():
        value.const_value = None
