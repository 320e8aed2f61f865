"""Sizes at which OpenVINO's bf16 gives noise: what is changed, and that the numbers are right then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")

from sfumato.engines.bundle import Bundle  # noqa: E402
from sfumato.engines.engine import open_engine  # noqa: E402
from sfumato.engines.openvino import _core  # noqa: E402
from sfumato.engines.openvino_faults import avoid_faults  # noqa: E402
from sfumato.engines.target import cpu_precision  # noqa: E402

opset: Any = openvino.opset13
EMOJI = Path(__file__).parents[2] / "bundles" / "emoji-ldm"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def convolution(height: int, width: int, *, kernel: int = 3, stride: int = 2) -> Any:
    """320 channels to as many, with a border of one pixel."""
    x = opset.parameter([2, 320, height, width], np.float32)
    weight = opset.constant(noise(320, 320, kernel, kernel) / (320 * kernel**2) ** 0.5)
    y = opset.convolution(x, weight, [stride] * 2, [1, 1], [1, 1], [1, 1])
    return openvino.Model([y], [x])


def attention(tokens: int, heads: int, keys: int) -> Any:
    """Scaled dot products of projected tokens with projected keys, 32 channels a head."""
    width = 32 * heads
    x, y = (opset.parameter([1, n, width], np.float32) for n in (tokens, keys))

    def split(value: Any, n: int, seed: int) -> Any:
        projected = opset.matmul(value, opset.constant(noise(width, width, seed=seed) / width**0.5), False, True)
        shape = opset.constant(np.array([1, n, heads, 32]))
        return opset.transpose(opset.reshape(projected, shape, False), opset.constant(np.array([0, 2, 1, 3])))

    scale = opset.constant(np.float32(32**-0.25))
    q, k = opset.multiply(split(x, tokens, 1), scale), opset.multiply(split(y, keys, 2), scale)
    seen = opset.softmax(opset.matmul(q, k, False, True), -1)
    out = opset.transpose(opset.matmul(seen, split(y, keys, 3), False, False), opset.constant(np.array([0, 2, 1, 3])))
    return openvino.Model([opset.reshape(out, opset.constant(np.array([1, tokens, width])), False)], [x, y])


def run(model: Any, precision: str, **more: str) -> np.ndarray:
    compiled = _core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision, **more})
    result = compiled([noise(*port.shape, seed=9 + i) for i, port in enumerate(model.inputs)])
    return np.array(result[0])


def kinds(model: Any) -> list[str]:
    return sorted(node.get_type_name() for node in model.get_ops())


@pytest.mark.parametrize(("height", "width", "kernel"), [(16, 2, 3), (8, 1, 3), (5, 2, 4)])
def test_a_picture_one_pixel_wide_is_cut_from_two(height: int, width: int, kernel: int) -> None:
    plain, model = convolution(height, width, kernel=kernel), convolution(height, width, kernel=kernel)
    assert avoid_faults(openvino, model) == {}
    assert kinds(model).count("Slice") == 1
    exact, ours = run(plain, "f32"), run(model, "f32")
    assert ours.shape == exact.shape and ours.shape[3] == 1
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)
    if cpu_precision() == "bf16":
        assert np.linalg.norm(run(model, "bf16") - exact) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize(("tokens", "heads", "keys"), [(6, 6, 6), (8, 8, 8), (12, 12, 77), (3, 3, 3)])
def test_attention_over_as_many_tokens_as_heads(tokens: int, heads: int, keys: int) -> None:
    model = attention(tokens, heads, keys)
    before = kinds(model)
    config = avoid_faults(openvino, model)
    assert config and kinds(model) == before
    exact = run(model, "f32")
    if cpu_precision() == "bf16":
        assert np.linalg.norm(run(model, "bf16", **config) - exact) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("make", "sizes"),
    [(convolution, (16, 4)), (convolution, (1, 16)), (attention, (9, 6, 6)), (attention, (1, 1, 4))],
    ids=["two wide", "one high", "other heads", "one head"],
)
def test_all_else_is_left_alone(make: Any, sizes: tuple[int, ...]) -> None:
    model = make(*sizes)
    before = kinds(model)
    assert avoid_faults(openvino, model) == {} and kinds(model) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "size"), [("unet", (1, 24, 4)), ("unet_gradient", (2, 16, 4)), ("unet_gradient", (1, 12, 8))]
)
def test_small_and_narrow_pictures_come_out(network: str, size: tuple[int, int, int]) -> None:
    if cpu_precision() != "bf16":
        pytest.skip("this processor does not compute in bf16")
    bundle = Bundle.open(EMOJI)
    batch, height, width = size
    symbols = {"batch": batch, "height": height, "width": width, "tokens": 32}
    feeds = {}
    for index, binding in enumerate(bundle.network(network).inputs):
        shape = [
            e if isinstance(e, int) else symbols.get(e) or height * width // int(e.removeprefix("pixels_")) ** 2
            for e in binding.shape
        ]
        feeds[binding.name] = np.exp(noise(*shape, seed=index))
        if binding.name == "t":
            feeds["t"] = np.full(batch, 667, np.float32)
        elif binding.name.startswith("reference"):
            feeds[binding.name] /= feeds[binding.name].sum(-1, keepdims=True)
        else:
            feeds[binding.name] = noise(*shape, seed=index)
    with open_engine(bundle, network, backend="onnxruntime") as engine:
        expected = {name: array.copy() for name, array in engine(**feeds).items()}
    for _ in range(2):  # the second time from the cache
        with open_engine(bundle, network, backend="openvino", precision="bf16") as engine:
            found = engine(**feeds)
        for name in {"prediction", "gradient"} & found.keys():
            assert np.linalg.norm(found[name] - expected[name]) < 0.1 * np.linalg.norm(expected[name]), name
