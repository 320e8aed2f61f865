"""Liveness: peaks counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sfumato.engines.liveness import footprint

onnx = pytest.importorskip("onnx")


def model(nodes: list[Any], weights: dict[str, np.ndarray] | None = None, shape: Any = ("batch", 10)) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def test_a_chain_holds_what_is_read_and_what_is_written():
    """x is the caller's and stays; a is freed when b is there."""
    taken = footprint(model([node("Exp", "x", "a"), node("Exp", "a", "b"), node("Exp", "b", "y")]), {"batch": 3})
    assert (taken.peak, taken.largest, taken.node) == (3 * 120, 120, "b")


def test_a_branch_is_held_until_it_is_joined():
    nodes = [node("Exp", "x", "a"), node("Exp", "a", "b"), node("Exp", "b", "c"), node("Add", "a c", "y")]
    assert footprint(model(nodes), {"batch": 1}).peak == 4 * 40  # at c: x, a, b, c; and at y: x, a, c, y


def test_a_view_takes_nothing():
    nodes = [node("Exp", "x", "a"), node("Reshape", "a flat", "b"), node("Exp", "b", "y")]
    assert footprint(model(nodes, {"flat": np.array([-1])}), {"batch": 1}).peak == 3 * 40


def test_what_follows_from_weights_alone_is_not_an_activation():
    from onnx import TensorProto

    nodes = [node("Cast", "w", "w32", to=TensorProto.FLOAT), node("MatMul", "x w32", "y")]
    taken = footprint(model(nodes, {"w": np.ones((10, 1000), np.float16)}), {"batch": 1})
    assert (taken.peak, taken.widened, taken.integers) == (40 + 4000, 40_000, 0)


def test_integer_weights_are_counted_as_they_are_stored():
    nodes = [node("DequantizeLinear", "q s", "w"), node("MatMul", "x w", "y")]
    weights = {"q": np.ones((10, 10), np.int8), "s": np.array(0.1, np.float32)}
    taken = footprint(model(nodes, weights), {"batch": 1})
    assert (taken.widened, taken.integers) == (4, 100)


def test_the_peak_grows_with_the_extents():
    made = model([node("Exp", "x", "a"), node("Exp", "a", "y")])
    assert footprint(made, {"batch": 8}).peak == 8 * footprint(made, {"batch": 1}).peak
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
