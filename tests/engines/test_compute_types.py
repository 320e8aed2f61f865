"""Compute types: products in half precision, islands in float32, and the numbers that come of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from sfumato.engines.build_network import prepare_graph  # noqa: E402
from sfumato.engines.bundle import Bundle  # noqa: E402
from sfumato.engines.compute_types import retype  # noqa: E402
from sfumato.engines.half_weights import HalfWeights  # noqa: E402
from sfumato.engines.onnx_model import read_array, read_model  # noqa: E402
from sfumato.engines.onnxruntime_provider import graph_to_open  # noqa: E402

F, H, B = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
HALF = {"fp16": H, "bf16": B}
RNG = np.random.default_rng(0)


def model(nodes: list[Any], weights: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",), rank: int = 2) -> Any:
    """A graph over one input `x` (batch, 4, …)."""
    shape = ["batch", 4, "h", "w"][:rank]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", F, shape)],
        [helper.make_tensor_value_info(name, F, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def types(done: Any) -> dict[str, int]:
    """The type of every node's first output, by operator and position; the graph must be sound."""
    checked = onnx.shape_inference.infer_shapes(done.model, strict_mode=True, check_type=True)
    values = (*checked.graph.value_info, *checked.graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return {f"{i}:{node.op_type}": kinds[node.output[0]] for i, node in enumerate(checked.graph.node)}


def half(tmp_path: Path, made: Any, precision: Any = "fp16", **options: Any) -> Any:
    return retype(made, precision, HalfWeights(tmp_path, tmp_path / "turned.weights"), **options)


def stored(nodes: list[Any], kind: type = np.float16) -> Any:
    """w (4, 4) stored in half precision behind its Cast."""
    cast = helper.make_node("Cast", ["w"], ["w32"], to=F)
    return model([cast, *nodes], {"w": RNG.standard_normal((4, 4)).astype(kind)})


def test_a_stored_weight_is_read_as_it_is_stored(tmp_path):
    done = half(tmp_path, stored([helper.make_node("MatMul", ["x", "w32"], ["y"])]))
    node = next(n for n in done.model.graph.node if n.op_type == "MatMul")
    assert list(node.input) == ["x/half", "w"]
    assert (done.halves, done.kept) == (1, [])
    assert list(types(done).values()) == [H, H, F]
    assert not (tmp_path / "turned.weights").exists()


def test_the_given_graph_is_not_changed(tmp_path):
    given = stored([helper.make_node("MatMul", ["x", "w32"], ["y"])])
    before = given.SerializeToString()
    half(tmp_path, given)
    assert given.SerializeToString() == before


def test_fp32_leaves_the_graph_as_it_is(tmp_path):
    given = stored([helper.make_node("MatMul", ["x", "w32"], ["y"])])
    assert half(tmp_path, given, "fp32").model.graph.node == given.graph.node


@pytest.mark.parametrize("operator", ["Softmax", "LayerNormalization", "Exp", "Sqrt"])
def test_an_island_computes_in_float32(tmp_path, operator):
    inputs = ["a", "scale"] if operator == "LayerNormalization" else ["a"]
    nodes = [
        helper.make_node("Cast", ["w"], ["w32"], to=F),
        helper.make_node("MatMul", ["x", "w32"], ["a"]),
        helper.make_node(operator, inputs, ["b"]),
        helper.make_node("MatMul", ["b", "w32"], ["y"]),
    ]
    given = model(nodes, {"w": RNG.standard_normal((4, 4)).astype(np.float16), "scale": np.ones(4, np.float32)})
    found = types(half(tmp_path, given))
    assert [kind for name, kind in found.items() if name.endswith(operator)] == [F]
    assert [kind for name, kind in found.items() if name.endswith("MatMul")] == [H, H]


def test_what_follows_a_product_stays_half_and_what_mixes_is_float32(tmp_path):
    """x W + b and its relu are half; its difference from its mean is not."""
    nodes = [
        helper.make_node("Cast", ["w"], ["w32"], to=F),
        helper.make_node("MatMul", ["x", "w32"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("ReduceMean", ["c"], ["m"], keepdims=1),
        helper.make_node("Sub", ["c", "m"], ["y"]),
    ]
    weights = {"w": RNG.standard_normal((4, 4)).astype(np.float16), "bias": np.ones(4, np.float32)}
    found = Counter((name.split(":")[1], kind) for name, kind in types(half(tmp_path, model(nodes, weights))).items())
    assert found[("Add", H)] == found[("Relu", H)] == found[("ReduceMean", F)] == found[("Sub", F)] == 1


def test_products_only_leaves_the_rest_in_float32(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w32"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w32"], ["y"]),
    ]
    found = types(half(tmp_path, stored(nodes), products_only=True))
    assert [kind for name, kind in found.items() if name.endswith("Relu")] == [F]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("size", [4, 32])
def test_a_float32_weight_is_turned_ahead_of_time(tmp_path, precision, size):
    """Small ones lie in the graph, large ones in a file; both are rounded to the nearest."""
    weight = RNG.standard_normal((size, size)).astype(np.float32)
    given = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, rank=2)
    given.graph.input[0].type.tensor_type.shape.dim[1].dim_value = size
    done = half(tmp_path, given, precision)
    (tensor,) = done.model.graph.initializer
    assert (tensor.name, tensor.data_type) == ("w/half", HALF[precision])
    assert (tmp_path / "turned.weights").exists() is (size == 32)
    error = np.abs(read_array(tensor, tmp_path).astype(np.float32) - weight) / np.abs(weight)
    assert error.max() <= {"fp16": 2**-11, "bf16": 2**-8}[precision] * 1.01


def test_a_weight_beyond_float16_keeps_its_product_in_float32(tmp_path):
    given = model([helper.make_node("MatMul", ["x", "w"], ["y"], name="big")], {"w": np.full((4, 4), 1e6, np.float32)})
    done = half(tmp_path, given)
    assert (done.halves, done.kept) == (0, ["big"])
    assert half(tmp_path, given, "bf16").halves == 1


def test_int8_rows_are_widened_to_half(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w32"], axis=1),
        helper.make_node("MatMul", ["x", "w32"], ["y"]),
    ]
    weights = {"q": RNG.integers(-127, 128, (4, 4)).astype(np.int8), "s": np.full(4, 0.01, np.float32)}
    found = types(half(tmp_path, model(nodes, weights)))
    assert [kind for name, kind in found.items() if name.endswith("DequantizeLinear")] == [H]


def test_a_value_wanted_in_both_types_is_cast_once(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w32"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("Exp", ["a"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    done = half(tmp_path, stored(nodes))
    assert sum(node.op_type == "Cast" for node in done.model.graph.node) == 2  # x to half, a to float32


def test_the_branches_of_an_if_find_what_they_read(tmp_path):
    value = helper.make_tensor_value_info("z", F, None)
    branch = helper.make_graph([helper.make_node("Exp", ["a"], ["z"])], "branch", [], [value])
    nodes = [
        helper.make_node("MatMul", ["x", "w32"], ["a"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
    ]
    given = stored(nodes)
    given.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    done = half(tmp_path, given)
    onnx.checker.check_model(done.model, full_check=True)
    assert done.halves == 1


@pytest.mark.parametrize("network", ["unet", "vae_decoder", "vae_encoder", "text_encoder"])
def test_a_networks_numbers_stay_within_its_tolerance(tiny_ldm, tmp_path, network):
    """The graph that a builder is given, run by ONNX Runtime, against what torch gave at export."""
    runtime = pytest.importorskip("onnxruntime")
    bundle = Bundle.open(tiny_ldm)
    spec = bundle.network(network)
    done = prepare_graph(bundle, spec, "fp16", tmp_path)[1]
    assert (done.halves > 0) is (network != "text_encoder")  # which is a table here
    with graph_to_open(bundle, spec, "fp16") as path:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert all(bundle.file(name).stat().st_nlink == 1 for name in spec.weights)  # else onnx would not read it again
    assert spec.reference is not None
    tensors = bundle.tensors(spec.reference)
    results = session.run([b.name for b in spec.outputs], {b.name: tensors[f"in/{b.name}"] for b in spec.inputs})
    for binding, got in zip(spec.outputs, results, strict=True):
        want = tensors[f"out/{binding.name}"]
        assert got.dtype == want.dtype
        assert np.linalg.norm(got - want) <= spec.tolerance["fp16"] * np.linalg.norm(want)


def test_a_graph_that_is_none_is_refused(tmp_path):
    from sfumato.errors import EngineError

    (tmp_path / "x.onnx").write_bytes(b"\xff\xff not a graph")
    with pytest.raises(EngineError, match="is not an ONNX graph"):
        read_model(tmp_path / "x.onnx")
