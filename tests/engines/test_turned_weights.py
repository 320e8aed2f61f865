"""Weights that a backward pass reverses and transposes stay half precision, and in no named file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")
onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

from sfumato.engines import openvino_model  # noqa: E402
from sfumato.engines.bundle import BundleWriter  # noqa: E402
from sfumato.engines.openvino import OpenVinoEngine  # noqa: E402

SIZE = 64
SHAPES = {"weight": (SIZE, SIZE, 3, 3)}
INTS = {"st": [-1, -1], "en": [-(2**62)] * 2, "ax": [2, 3], "back": [-1, -1], "ch": [0], "few": [SIZE // 2], "one": [1]}
CHAINS: dict[str, tuple[list[tuple[str, tuple[str, ...], dict[str, Any]]], Any]] = {
    "reversed": ([("Slice", ("st", "en", "ax", "back"), {})], lambda w: w[:, :, ::-1, ::-1]),
    "transposed": ([("Transpose", (), {"perm": [1, 0, 2, 3]})], lambda w: w.transpose(1, 0, 2, 3)),
    "both": (
        [("Slice", ("st", "en", "ax", "back"), {}), ("Transpose", (), {"perm": [1, 0, 2, 3]})],
        lambda w: w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3),
    ),
    "and back": ([("Slice", ("st", "en", "ax", "back"), {})] * 2, lambda w: w),
    "cut": ([("Slice", ("few", "en2", "ch", "one"), {})], lambda w: w[SIZE // 2 :]),
}


@pytest.fixture(params=CHAINS)
def case(request: pytest.FixtureRequest, models: Any, tmp_path: Any) -> Any:
    """A bundle whose one network is a convolution with turned weights, and those weights."""
    steps, turn = CHAINS[request.param]
    weight = (0.05 * np.random.default_rng(0).standard_normal(SHAPES["weight"])).astype(np.float16)
    nodes, last = [], "w"
    for index, (kind, inputs, attributes) in enumerate(steps):
        nodes.append(helper.make_node(kind, [last, *inputs], [f"v{index}"], **attributes))
        last = f"v{index}"
    nodes += [
        helper.make_node("Cast", [last], ["w32"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w32"], ["z"], pads=[1, 1, 1, 1]),
    ]
    turned = turn(weight)
    binding = replace(models.EMBEDDER.outputs[0], name="x", shape=("batch", SIZE, 8, 8))
    spec = replace(models.EMBEDDER, name="turned", graph="turned.onnx", weights=("turned.weights",))
    spec = replace(spec, inputs=(binding,), outputs=(replace(binding, name="z", shape=("batch", len(turned), 8, 8)),))
    numbers = {name: np.array(values, np.int64) for name, values in {**INTS, "en2": [2**62]}.items()}
    with BundleWriter(tmp_path / "turned") as writer:
        models.save(
            writer.path("turned.onnx"),
            nodes,
            [("x", TensorProto.FLOAT, ["batch", SIZE, 8, 8])],
            [("z", TensorProto.FLOAT, ["batch", len(turned), 8, 8])],
            {"w": weight, **numbers},
        )
        return writer.commit(models.manifest(spec)), turned


def convolved(bundle: Any) -> tuple[np.ndarray, list[str]]:
    """What the engine makes of one picture, and the types of its large constants."""
    x = np.random.default_rng(1).standard_normal((1, SIZE, 8, 8)).astype(np.float32)
    with OpenVinoEngine(bundle, bundle.network("turned"), precision="fp32", threads=1, cache=False) as engine:
        found = engine(x=x)["z"].copy()
        (compiled,) = engine._compiled.values()
        nodes = compiled.model.get_runtime_model().get_ops()
        constants = [
            n for n in nodes if n.get_rt_info()["layerType"].astype(str) == "Const" and n.output(0).shape[0] > 8
        ]
        return found, [n.output(0).get_element_type().get_type_name() for n in constants]


def wanted(weight: np.ndarray) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((1, SIZE, 8, 8)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("bchwij,ocij->bohw", windows, weight.astype(np.float32), optimize=True)


def test_they_stay_half_and_leave_no_file(case, cache):
    bundle, turned = case
    found, types = convolved(bundle)
    np.testing.assert_allclose(found, wanted(turned), atol=1e-4)
    assert types == ["f16"]
    assert not list((cache / "build").iterdir())


def test_without_room_openvino_turns_them(case, cache, monkeypatch):
    bundle, turned = case

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openvino_model, "_write", full)
    found, types = convolved(bundle)
    np.testing.assert_allclose(found, wanted(turned), atol=1e-4)
    assert types == ["f32"]  # which is why we do it


def test_the_file_is_known_to_be_mapped_after_it_was_deleted(tmp_path):
    from sfumato.engines.resident import mapped_pages

    kept, offsets = openvino_model._write([np.ones((3, 5), np.uint16), np.ones(4096, np.uint16)[::-1]], tmp_path)
    assert offsets == [0, 64]
    assert not kept.path.exists()
    assert sum(length for _, length in mapped_pages([kept.path])) >= 64 + 8192
