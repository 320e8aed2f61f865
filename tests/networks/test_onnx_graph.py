"""Stored graphs in torch: the same numbers as the modules that they were made of, and their derivatives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from onnx import TensorProto, helper

from sfumato.errors import EngineError
from sfumato.networks.onnx_graph import OnnxGraph
from sfumato.networks.onnx_ops import OPERATORS

RNG = np.random.default_rng(0)


def _f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _i64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


X = _f32(2, 4, 6, 8)
CASES: list[tuple[str, list[np.ndarray | None], dict[str, object]]] = [
    ("Abs", [X], {}),
    ("AveragePool", [X], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Cast", [X], {"to": TensorProto.INT64}),
    ("Clip", [X, np.float32(-0.5), np.float32(0.5)], {}),
    ("Clip", [X, None, np.float32(0.5)], {}),
    ("Concat", [X, X[:, :1]], {"axis": 1}),
    ("ConstantOfShape", [_i64(2, 3)], {}),
    ("Conv", [X, _f32(6, 4, 3, 3), _f32(6)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", [X, _f32(4, 2, 3, 3)], {"pads": [0, 1, 0, 1], "group": 2, "dilations": [2, 1]}),
    ("ConvTranspose", [X, _f32(4, 5, 3, 3)], {"pads": [1, 1, 1, 1], "strides": [2, 2], "output_padding": [1, 1]}),
    ("DequantizeLinear", [RNG.integers(-9, 9, (3, 4)).astype(np.int8), _f32(3)], {"axis": 0}),
    ("Div", [_i64(-7, 7), _i64(2, 2)], {}),
    ("Expand", [X[:, :1], _i64(1, 3, 1, 1)], {}),
    ("Gather", [X, np.array([[0, -1], [2, 1]])], {"axis": 2}),
    ("Gelu", [X], {}),
    ("Gemm", [_f32(3, 4), _f32(5, 4), _f32(5)], {"transB": 1}),
    ("GroupNormalization", [X, _f32(4), _f32(4)], {"num_groups": 2}),
    ("InstanceNormalization", [X, _f32(4), _f32(4)], {}),
    ("LayerNormalization", [X, _f32(8), _f32(8)], {}),
    ("Mod", [_i64(-7, 7), _i64(3, 3)], {}),
    ("Pad", [X, _i64(0, 1, 2, 0, 0, 0, 1, 0)], {}),
    ("Pad", [X, _i64(1, 2), np.float32(3), _i64(-1)], {}),
    ("Range", [np.int64(1), np.int64(9), np.int64(3)], {}),
    ("ReduceMean", [X, _i64(-1, 1)], {"keepdims": 0}),
    ("ReduceSum", [X], {}),
    ("ReduceMax", [X, _i64(2)], {}),
    ("Reshape", [X, _i64(0, -1, 2)], {}),
    (
        "Resize",
        [X, None, _f32(0), _i64(2, 4, 12, 16)],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),  # fmt: skip
    ("Shape", [X], {"start": 1}),
    ("Slice", [X, _i64(1), _i64(-1), _i64(2)], {}),
    ("Slice", [X, _i64(-1), _i64(-(2**31) + 1), _i64(0), _i64(-1)], {}),
    ("Slice", [X, _i64(7), _i64(1), _i64(3), _i64(-2)], {}),
    ("Slice", [X, _i64(0), _i64(2**62), _i64(1), _i64(2)], {}),
    ("Softmax", [X], {"axis": 1}),
    ("Split", [X, _i64(1, 3)], {"axis": 1}),
    ("Squeeze", [X[:, :1], _i64(1)], {}),
    ("Transpose", [X], {"perm": [0, 2, 3, 1]}),
    ("Transpose", [X], {}),
    ("Unsqueeze", [X, _i64(-1, 1)], {}),
    ("Where", [X > 0, X, -X], {}),
]


@pytest.mark.parametrize(("kind", "inputs", "attributes"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_operators_are_those_of_onnx(kind, inputs, attributes) -> None:
    names = [f"i{n}" if value is not None else "" for n, value in enumerate(inputs)]
    count = 2 if kind == "Split" else 1
    outputs = [f"o{n}" for n in range(count)]
    node = helper.make_node(kind, names, outputs, **attributes)
    opset = helper.make_opsetid("", 21 if kind == "GroupNormalization" else 20)
    given = {n: np.asarray(v) for n, v in zip(names, inputs, strict=True) if n}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in given.items()],
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in outputs],
    )
    expected = onnx.reference.ReferenceEvaluator(helper.make_model(graph, opset_imports=[opset])).run(None, given)
    tensors = [None if v is None else torch.from_numpy(np.array(v)) for v in inputs]
    result = OPERATORS[kind](*tensors, **attributes)
    for got, want in zip(result if isinstance(result, tuple) else (result,), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "message"),
    [
        ("AveragePool", [X], {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}, "AveragePool with padding"),
        ("Conv", [X, X[:1]], {"auto_pad": "SAME_UPPER"}, "auto_pad='SAME_UPPER'"),
        ("Pad", [X, _i64(0, 0, 1, 1, 0, 0, 1, 1)], {"mode": "reflect"}, "Pad with mode='reflect'"),
    ],
)
def test_forms_that_torch_lacks_are_named(kind, inputs, attributes, message) -> None:
    with pytest.raises(EngineError, match=f"no form for .*{message}; use a backend but 'torch'"):
        OPERATORS[kind](*(torch.from_numpy(np.array(v)) for v in inputs), **attributes)


def _graph(path: Path) -> Path:
    """y = tanh(x W) + b, and z = 2 y; W in float16."""
    weight = helper.make_tensor("w", TensorProto.FLOAT16, (3, 2), np.arange(6, dtype=np.float16).reshape(3, 2) / 8)
    bias = helper.make_tensor("b", TensorProto.FLOAT, (2,), np.float32([1, 2]))
    two = helper.make_tensor("two", TensorProto.FLOAT, (), np.float32([2]))
    nodes = [
        helper.make_node("Cast", ["w"], ["w32"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w32"], ["h"]),
        helper.make_node("Tanh", ["h"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
        helper.make_node("Mul", ["y", "two"], ["z0"]),
        helper.make_node("Add", ["z0", "s"], ["z"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ("n", 3)), value("s", TensorProto.FLOAT, ())],
        [value("y", TensorProto.FLOAT, ("n", 2)), value("z", TensorProto.FLOAT, ("n", 2))],
        [weight, bias, two],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def test_a_part_of_a_graph_is_run_and_differentiated(tmp_path: Path) -> None:
    module = OnnxGraph(_graph(tmp_path / "g.onnx"), ["y"])
    assert module.inputs == ("x",) and module.outputs == ("y",)
    assert len(list(module.buffers())) == 2  # the weight widened once, and the bias
    x = torch.tensor([[0.1, 0.2, 0.3]], requires_grad=True)
    w = torch.arange(6.0).reshape(3, 2) / 8
    torch.testing.assert_close(module(x=x)["y"], torch.tanh(x @ w) + torch.tensor([1.0, 2.0]))
    (found,) = torch.autograd.grad(module(x=x)["y"].sum(), x)
    (expected,) = torch.autograd.grad(torch.tanh(x @ w).sum(), x)
    torch.testing.assert_close(found, expected)


def test_an_output_may_be_read_by_others(tmp_path: Path) -> None:
    module = OnnxGraph(_graph(tmp_path / "g.onnx"))
    out = module(x=torch.ones(2, 3), s=torch.tensor(5.0))
    torch.testing.assert_close(out["z"], 2 * out["y"] + 5)


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    path = _graph(tmp_path / "g.onnx")
    model = onnx.load(path)
    model.graph.node[2].op_type = "Celu"
    onnx.save(model, path)
    with pytest.raises(EngineError, match="Celu"):
        OnnxGraph(path)
