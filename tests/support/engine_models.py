"""Tiny ONNX networks and bundles that the engine tests run on."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as to_bytes

from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.manifest import Manifest, NetworkSpec
from sfumato.engines.precision import PrecisionPlan

DIMENSIONS = {"batch": Dimension(1, 1, 4), "height": Dimension(2, 4, 16, 2), "width": Dimension(2, 4, 16, 2)}
WEIGHT = np.random.default_rng(7).standard_normal((3, 4, 3, 3)).astype(np.float32)
BIAS = np.array([0.5, -0.25, 1.0], np.float32)


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[tuple[str, int, Sequence[Any]]],
    outputs: Sequence[tuple[str, int, Sequence[Any]]],
    weights: dict[str, np.ndarray],
    *,
    external: bool = True,
) -> None:
    """Write an ONNX graph at opset 20, with its weights in one file beside it; skips the test without onnx."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        list(nodes),
        path.stem,
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    where: dict[str, Any] = {"save_as_external_data": True, "location": f"{path.stem}.weights", "size_threshold": 100}
    onnx.save(model, path, **(where if external else {}))


def save_unet(path: Path, *, weight: np.ndarray = WEIGHT, external: bool = True) -> None:
    """prediction = conv(x) + bias + t, its weight stored in float16 and cast."""
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    image = ["batch", 4, "height", "width"]
    save(
        path,
        [
            helper.make_node("Cast", ["weight"], ["w32"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["x", "w32", "bias"], ["y"], pads=[1, 1, 1, 1]),
            helper.make_node("Reshape", ["t", "column"], ["t4"]),
            helper.make_node("Add", ["y", "t4"], ["prediction"]),
        ],
        [("x", TensorProto.FLOAT, image), ("t", TensorProto.FLOAT, ["batch"])],
        [("prediction", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        {"weight": weight.astype(np.float16), "bias": BIAS, "column": np.array([-1, 1, 1, 1])},
        external=external,
    )


def save_embedder(path: Path) -> None:
    """context = table[y], one row for each class."""
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    save(
        path,
        [helper.make_node("Gather", ["table", "y"], ["context"])],
        [("y", TensorProto.INT64, ["batch"])],
        [("context", TensorProto.FLOAT, ["batch", 8])],
        {"table": np.arange(80, dtype=np.float32).reshape(10, 8)},
        external=False,
    )


UNET = NetworkSpec(
    name="unet",
    graph="unet.onnx",
    weights=("unet.weights",),
    inputs=(Binding("x", "float32", ("batch", 4, "height", "width")), Binding("t", "float32", ("batch",))),
    outputs=(Binding("prediction", "float32", ("batch", 3, "height", "width")),),
    dimensions=DIMENSIONS,
    precision=PrecisionPlan("fp16", ("bias",)),
    reference="unet.reference.safetensors",
    tolerance={"fp32": 1e-4, "bf16": 2e-2},
    parity={"max_abs": 1e-6, "relative": 1e-7, "cosine": 1.0},
)

EMBEDDER = NetworkSpec(
    name="class_embedder",
    graph="class_embedder.onnx",
    weights=(),
    inputs=(Binding("y", "int64", ("batch",)),),
    outputs=(Binding("context", "float32", ("batch", 8)),),
    dimensions={"batch": Dimension(1, 1, 4)},
    tolerance={"fp32": 1e-6},
)


def manifest(*networks: NetworkSpec, **changes: Any) -> Manifest:
    """A manifest of these networks, without files."""
    fields: dict[str, Any] = {
        "system": "latent-diffusion",
        "name": "tiny",
        "license": "CC0-1.0",
        "producer": {"sfumato": "0.1.0"},
        "networks": {network.name: network for network in networks},
    }
    return Manifest(**{**fields, **changes})


def feeds(batch: int = 2, height: int = 4, width: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs for the tiny UNet."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, 4, height, width)).astype(np.float32)
    return {"x": x, "t": rng.standard_normal(batch).astype(np.float32)}


def expected(x: np.ndarray, t: np.ndarray, weight: np.ndarray = WEIGHT) -> np.ndarray:
    """What the tiny UNet must give: the convolution written out in NumPy."""
    w = weight.astype(np.float16).astype(np.float64)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("bchwij,ocij->bohw", windows, w) + BIAS[:, None, None] + t[:, None, None, None]


def write_tiny(out: Path, *, reference: bool = True, weight: np.ndarray = WEIGHT, **changes: Any) -> Bundle:
    """A bundle of the tiny UNet and the class embedder."""
    unet = UNET if reference else replace(UNET, reference=None)
    embedder = EMBEDDER
    with BundleWriter(out) as writer:
        save_unet(writer.path("unet.onnx"), weight=weight)
        save_embedder(writer.path("class_embedder.onnx"))
        if reference:
            ins = feeds()
            tensors = {f"in/{k}": v for k, v in ins.items()}
            tensors["out/prediction"] = expected(**ins, weight=weight).astype(np.float32)
            writer.write("unet.reference.safetensors", to_bytes(tensors))
            y = np.array([1, 9])
            rows = np.arange(80, dtype=np.float32).reshape(10, 8)[y]
            writer.write("class_embedder.reference.safetensors", to_bytes({"in/y": y, "out/context": rows}))
            embedder = replace(EMBEDDER, reference="class_embedder.reference.safetensors")
        writer.write("tokenizer.json", b"{}")
        return writer.commit(manifest(unet, embedder, assets={"tokenizer": "tokenizer.json"}, **changes))


def message(number: int, payload: bytes) -> bytes:
    """A length-delimited Protocol Buffers field, for graphs that the onnx library would refuse to write."""
    assert len(payload) < 128 and number < 16
    return struct.pack("BB", number << 3 | 2, len(payload)) + payload
