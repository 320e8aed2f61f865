"""Islands: marks in the XML form of a network, and what OpenVINO makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.islands import ISLANDS, mark
from sfumato.engines.manifest import Manifest, NetworkSpec
from sfumato.engines.precision import PrecisionPlan
from sfumato.engines.target import cpu_precision
from sfumato.errors import EngineError

XML = b"""<net><layers>
<layer id="0" name="a" type="Parameter"/>
<layer id="1" name="b" type="MatMul"><data transpose_a="false"/></layer>
<layer id="2" name="c" type="Add"><data auto_broadcast="numpy"/><input/></layer>
<layer id="3" name="d" type="Exp"><rt_info><attribute name="fused" version="0"/></rt_info></layer>
</layers></net>"""


def test_everything_but_products_is_marked() -> None:
    layers = {layer.get("name"): layer for layer in ElementTree.fromstring(mark(XML)).iter("layer")}
    marks = {name: [a.get("name") for a in layer.iter("attribute")] for name, layer in layers.items()}
    assert marks == {"a": [], "b": [], "c": ["precise"], "d": ["fused", "precise"]}
    assert [part.tag for part in layers["c"]] == ["data", "rt_info", "input"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """y = (x W / (8 + mean of x W)) W, with W large enough to stay out of the XML."""
    onnx = pytest.importorskip("onnx")
    helper, f32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("ReduceMean", ["h", "axes"], ["m"]),
            helper.make_node("Add", ["m", "eight"], ["d"]),
            helper.make_node("Div", ["h", "d"], ["p"]),
            helper.make_node("MatMul", ["p", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", f32, ("n", 64))],
        [helper.make_tensor_value_info("y", f32, ("n", 64))],
        [
            onnx.numpy_helper.from_array(WEIGHT, "w"),
            onnx.numpy_helper.from_array(np.array([1]), "axes"),
            onnx.numpy_helper.from_array(np.array([8], dtype=np.float32), "eight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    inputs, outputs = ((Binding(name, "float32", ("n", 64)),) for name in "xy")
    spec = NetworkSpec(
        "net", "net.onnx", (), inputs, outputs, {"n": Dimension(1, 2, 8)}, PrecisionPlan(keep_fp32=(ISLANDS,))
    )
    with BundleWriter(tmp_path / "b") as writer:
        writer.write("net.onnx", model.SerializeToString())
        return writer.commit(Manifest("test", "net", "CC0-1.0", {}, {"net": spec}))


WEIGHT = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


def test_openvino_keeps_islands_in_float32(bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    if cpu_precision() != "bf16":
        pytest.skip("this processor does not compute in bf16")
    from sfumato.engines.openvino import OpenVinoEngine

    x = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    exact = x @ WEIGHT
    exact = exact / (8 + exact.mean(1, keepdims=True)) @ WEIGHT

    def kinds(spec: NetworkSpec) -> dict[str, str]:
        with OpenVinoEngine(bundle, spec, precision="bf16", threads=1) as engine:
            assert np.linalg.norm(engine(x=x)["y"] - exact) < 2e-2 * np.linalg.norm(exact)
            (compiled,) = engine._compiled.values()
            info = [node.get_rt_info() for node in compiled.model.get_runtime_model().get_ops()]
            return {_text(i["layerType"]): _text(i["runtimePrecision"]) for i in info}

    spec = bundle.network("net")
    for _ in range(2):  # the second time from the cache, which keeps the two apart
        marked, plain = kinds(spec), kinds(replace(spec, precision=PrecisionPlan()))
        assert (marked["Reduce"], marked["FullyConnected"]) == ("f32", "bf16")
        assert (plain["Reduce"], plain["FullyConnected"]) == ("bf16", "bf16")


@pytest.mark.parametrize(
    ("name", "error", "seen"),
    [
        ("turn_weights", KeyboardInterrupt(), KeyboardInterrupt),
        ("with_islands", OSError(28, "No space left"), EngineError),
    ],
)
def test_what_was_interrupted_begins_anew(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, seen: type[BaseException]
) -> None:
    """Not with a network that is half made: marks would be missing without a word."""
    module = pytest.importorskip("sfumato.engines.openvino")
    pytest.importorskip("openvino")
    if cpu_precision() != "bf16":
        pytest.skip("this processor does not compute in bf16")
    x = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    options = {"precision": "bf16", "threads": 1, "cache": False}
    with module.OpenVinoEngine(bundle, bundle.network("net"), **options) as engine:
        expected = engine(x=x)["y"].copy()
    original = getattr(module, name)

    def fails(openvino: Any, *rest: Any) -> Any:
        original(openvino, *rest)  # as far as it changes what it is given
        raise error

    with module.OpenVinoEngine(bundle, bundle.network("net"), **options) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fails)
            with pytest.raises(seen):
                engine(x=x)
        np.testing.assert_array_equal(engine(x=x)["y"], expected)
        (compiled,) = engine._compiled.values()
        info = [node.get_rt_info() for node in compiled.model.get_runtime_model().get_ops()]
        assert {_text(i["layerType"]): _text(i["runtimePrecision"]) for i in info}["Reduce"] == "f32"


def _text(value: object) -> str:
    return str(getattr(value, "value", value))
