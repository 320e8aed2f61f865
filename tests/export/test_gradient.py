"""Gradient graphs: equal to autograd on every engine at sizes never traced, no scatters, weights stored once."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sfumato.calibration.parity import verify_bundle
from sfumato.engines.binding import Binding
from sfumato.engines.build import build_plan
from sfumato.engines.build_target import parse_target
from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.manifest import Manifest
from sfumato.errors import ExportError
from sfumato.export.attention_maps import MapLayer, attention_networks, find_maps
from sfumato.export.gradient import Objective, differentiate, vector_product
from sfumato.export.network import Network
from sfumato.export.recipes import parts
from sfumato.export.write import export_network
from sfumato.networks.layers import group_norm
from sfumato.networks.transformer import CrossAttention
from sfumato.runtime.gradient import open_gradient

SIDES = parts.Sides((8, 8), 2, 4)


class ResBlock(nn.Module):
    """Half the size and back, with a skip; the name is one that is recomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = group_norm(32)
        self.down = nn.Conv2d(32, 32, 3, 2, 1)
        self.same = nn.Conv2d(32, 32, 1)
        self.up = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.silu(self.down(functional.silu(self.norm(x))))
        return x + self.up(functional.interpolate(self.same(h), scale_factor=2.0, mode="nearest"))


class Transformer(nn.Module):
    """Cross-attention of pixels over tokens, with a layer norm and a square product before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(32), nn.Linear(32, 32)
        self.attn2 = CrossAttention(32, 32, 4, 8)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = x.flatten(2).transpose(1, 2)
        h = self.attn2(self.norm(functional.gelu(self.mix(h))), context) + h
        return h.transpose(1, 2).reshape(x.shape)


class Small(nn.Module):
    """One of everything that a UNet is made of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.time = nn.Conv2d(4, 32, 3, padding=1), nn.Linear(1, 32)
        self.block, self.attention = ResBlock(), Transformer()
        self.deep = ResBlock()
        self.again = Transformer()
        self.last = nn.Conv2d(64, 4, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        h = self.first(x) + torch.tanh(self.time(t[:, None] / 1000))[:, :, None, None]
        inner = self.attention(self.block(h), context)
        low = functional.avg_pool2d(inner, 2)
        low = self.again(self.deep(low), context)
        first, second = inner.chunk(2, dim=1)
        skip = torch.cat([second, first], dim=1) + functional.interpolate(low, scale_factor=2.0, mode="nearest")
        return self.last(torch.cat([skip, h], dim=1))


def small() -> Network:
    return parts.unet(Small, (4, 4), parts.Sides((8, 8), 4, 4), context=(6, 32))


def write(out: Path, *networks: Network, precision: Any = "fp32") -> Bundle:
    with BundleWriter(out) as writer:
        specs = {n.name: export_network(writer, n, precision) for n in networks}
        return writer.commit(Manifest("test", "tiny", "CC0-1.0", {}, specs))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network, its maps and its gradient, in fp16."""
    return write(tmp_path_factory.mktemp("gradients") / "b", small(), *attention_networks(small()), precision="fp16")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The gradient that recomputes, and the vector-Jacobian product."""
    again = replace(attention_networks(small(), recompute=True)[1], name="recomputed")
    product = vector_product(small(), name="product")
    return write(tmp_path_factory.mktemp("gradients") / "o", small(), again, product, precision="fp16")


NETWORKS = ["unet_gradient", *(pytest.param(name, marks=pytest.mark.slow) for name in ("recomputed", "product"))]
"""Exporting one of them takes about ten seconds."""


@pytest.fixture
def holder(request: pytest.FixtureRequest, name: str) -> Bundle:
    """The bundle that has the network `name`."""
    found: Bundle = request.getfixturevalue("bundle" if name.startswith("unet") else "other")
    return found


def _inputs(bundle: Bundle, name: str, batch: int, height: int, width: int, tokens: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch + width)
    feeds = {
        "x": rng.standard_normal((batch, 4, height, width)),
        "t": rng.integers(0, 1000, batch),
        "context": rng.standard_normal((batch, tokens, 32)),
    }
    for binding in bundle.network(name).inputs[3:]:
        if binding.name.startswith("cotangent"):
            feeds[binding.name] = rng.standard_normal((batch, 4, height, width))
        else:
            factor = int(str(binding.shape[2]).removeprefix("pixels_"))
            scores = np.exp(rng.standard_normal((batch, 4, height * width // factor**2, tokens)))
            feeds[binding.name] = scores / scores.sum(-1, keepdims=True)
    return {k: v.astype(np.float32) for k, v in feeds.items()}


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_engines_and_autograd_give_the_same_gradient(holder: Bundle, name: str, backend: Any) -> None:
    with (
        open_gradient(holder, name, backend="torch") as reference,
        open_gradient(holder, name, backend=backend, precision="fp32") as gradient,
    ):
        for sizes in ((1, 4, 12, 3), (3, 16, 8, 7)):
            feeds = _inputs(holder, name, *sizes)
            expected, derivative = reference(**feeds)
            loss, result = gradient(**feeds)
            assert loss == pytest.approx(expected, rel=1e-4)
            assert _difference(result, derivative) < 1e-4
            assert _difference(gradient.prediction, reference.prediction) < 1e-4


def test_the_gradient_is_the_one_of_the_maps_network(bundle: Bundle) -> None:
    """Without a gradient graph: the loss of the network that shows its maps, by autograd."""
    feeds = _inputs(bundle, "unet_gradient", 2, 8, 8, 5)
    options = {"backend": "torch", "loss": "attention_maps"}
    with (
        open_gradient(bundle, "unet_maps", **options) as maps,
        open_gradient(bundle, "unet_gradient", backend="onnxruntime") as gradient,
    ):
        expected, derivative = maps(**feeds)
        loss, result = gradient(**feeds)
        assert loss == pytest.approx(expected, rel=1e-4)
        assert _difference(result, derivative) < 1e-4


def test_the_gradient_is_zero_where_the_maps_are_the_references(bundle: Bundle) -> None:
    feeds = _inputs(bundle, "unet_gradient", 2, 8, 8, 5)
    plain = {k: feeds[k] for k in ("x", "t", "context")}
    from sfumato.engines.engine import open_engine

    with open_engine(bundle, "unet_maps", backend="onnxruntime") as engine:
        maps = {k.replace("map", "reference"): v.copy() for k, v in engine(**plain).items() if k != "prediction"}
    with open_gradient(bundle, "unet_gradient", backend="onnxruntime") as gradient:
        loss, result = gradient(**plain, **maps)
    assert loss < 1e-9 and np.abs(result).max() < 1e-6


@pytest.mark.parametrize("name", ["unet_maps", *NETWORKS])
def test_weights_are_stored_once(holder: Bundle, name: str) -> None:
    stored, spec = holder.manifest.files["unet.weights"].bytes, holder.network(name)
    assert spec.weights[-1] == "unet.weights"
    assert sum(holder.manifest.files[path].bytes for path in spec.weights[:-1]) < 0.05 * stored
    large = [i for i in _graph(holder, name).initializer if np.prod(i.dims) >= 1024]
    assert large and {e.value for i in large for e in i.external_data if e.key == "location"} == {"unet.weights"}


@pytest.mark.parametrize("name", NETWORKS)
def test_there_is_nothing_in_the_graph_that_engines_lack(holder: Bundle, name: str) -> None:
    kinds = {node.op_type for node in _graph(holder, name).node}
    lacking = {"ScatterND", "ScatterElements", "GridSample", "Resize", "LayerNormalization", "Loop", "If"}
    assert not kinds & lacking


@pytest.mark.slow
def test_recomputing_runs_blocks_twice(bundle: Bundle, other: Bundle) -> None:
    def convolutions(bundle: Bundle, name: str) -> int:
        return sum(node.op_type == "Conv" for node in _graph(bundle, name).node)

    # One of each block: what no derivative reads is left out.
    assert convolutions(other, "recomputed") == convolutions(bundle, "unet_gradient") + 2


def test_verify_holds_gradients_too(bundle: Bundle) -> None:
    report = verify_bundle(bundle)
    assert report.passed, report
    rows = {(r.backend, r.precision): r.deviation for r in report.rows if r.network == "unet_gradient"}
    assert rows and all(d is not None and d.cosine >= 0.995 and d.relative <= 0.1 for d in rows.values())
    assert bundle.network("unet_gradient").parity["openvino_relative"] < 1e-2
    assert bundle.network("unet_gradient").precision.keep_fp32 == ("*",)


def test_the_layers_are_found() -> None:
    assert find_maps(small()) == (MapLayer(4, 1), MapLayer(4, 2))
    plain = parts.unet(lambda: parts.LabelUNet(nn.Conv2d(4, 4, 3, padding=1)), (4, 4), SIDES)
    with pytest.raises(ExportError, match="no cross-attention"):
        find_maps(replace(plain, build=lambda: Plain()))


class Plain(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * t[:, None, None, None]


class Likeness(Objective):
    """Half the squared distance of a prediction to a picture, and of t to a number."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        x, t, target = inputs
        prediction = self.module(x, t)
        return 0.5 * (prediction - target).square().sum() + 0.5 * t.square().sum(), prediction


def test_several_inputs_at_once(tmp_path: Path) -> None:
    base = replace(parts.unet(Plain, (4, 4), SIDES), dimensions=parts.unet(Plain, (4, 4), SIDES).dimensions)
    target = replace(base, inputs=(Binding("target", "float32", ("batch", 4, "height", "width")),))
    network = differentiate(base, Likeness, name="likeness", more=target, wrt=("x", "t"))
    bundle = write(tmp_path / "b", network)
    x, target_ = np.ones((2, 4, 2, 4), np.float32), np.full((2, 4, 2, 4), 3, np.float32)
    for of, expected in (("x", np.full_like(x, 2 * (2 - 3.0))), ("t", np.full(2, 32 * (2 - 3.0) + 2))):
        with open_gradient(bundle, "likeness", backend="onnxruntime", of=of) as gradient:
            given = {"x": x, "t": np.full(2, 2.0, np.float32), "target": target_}
            loss, result = gradient(**given)
        assert loss == pytest.approx(0.5 * 64 + 0.5 * 8)
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_unknown_inputs_are_refused() -> None:
    with pytest.raises(ExportError, match="cannot differentiate by z"):
        differentiate(small(), Likeness, name="n", wrt=("z",))


def test_a_torch_without_the_private_function_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.export import _trace

    base = parts.unet(Plain, (4, 4), SIDES)
    target = replace(base, inputs=(Binding("target", "float32", ("batch", 4, "height", "width")),))
    monkeypatch.delattr(_trace, "_export")
    with pytest.raises(ExportError, match=r"^likeness: torch .* has no torch.export._trace._export.*pip install"):
        write(tmp_path / "b", differentiate(base, Likeness, name="likeness", more=target))


def _graph(bundle: Bundle, name: str) -> Any:
    return onnx.load(str(bundle.file(bundle.network(name).graph)), load_external_data=False).graph


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs TensorRT for RTX; run: pip install 'sfumato[rtx]'",
)
@pytest.mark.parametrize("name", ["unet_gradient", "recomputed", "product"])
def test_tensorrt_for_rtx_builds_it_without_a_gpu(holder: Bundle, name: str) -> None:
    plan = build_plan(holder, name, parse_target("rtx:sm86+sm89"))
    assert plan.key["precision"] == "fp16"
    assert plan.built["half_products"] > 10
    assert plan.bytes > 1000
