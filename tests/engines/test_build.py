"""Real plans of tiny networks by TensorRT for RTX, which needs no GPU to build."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.build import build_plan
from sfumato.engines.build_options import BuildOptions
from sfumato.engines.build_target import parse_target
from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.manifest import NetworkSpec
from sfumato.engines.plan import find_plans
from sfumato.errors import EngineError, ParameterError

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None or importlib.util.find_spec("onnx") is None,
    reason="needs TensorRT for RTX and onnx; run: pip install 'sfumato[rtx]'",
)
pytestmark = needs_rtx
TWO = parse_target("rtx:sm86+sm89")
RNG = np.random.default_rng(0)
IMAGE = ["batch", 4, "height", "width"]


def write(models: Any, out: Any, nodes: list[Any], weights: dict[str, np.ndarray], channels: int = 4) -> Bundle:
    """A bundle of one network over pictures; weights are stored in the types they are given in."""
    from onnx import TensorProto

    bindings = Binding("x", "float32", tuple(IMAGE)), Binding("y", "float32", ("batch", channels, "height", "width"))
    spec = NetworkSpec(
        "net", "net.onnx", ("net.weights",), bindings[:1], bindings[1:], models.DIMENSIONS, tolerance={"fp16": 0.01}
    )
    with BundleWriter(out) as writer:
        graph = writer.path("net.onnx")
        shapes = [("x", TensorProto.FLOAT, IMAGE)], [("y", TensorProto.FLOAT, list(bindings[1].shape))]
        models.save(graph, nodes, *shapes, weights)
        if not graph.with_suffix(".weights").exists():
            spec = replace(spec, weights=())
        return writer.commit(models.manifest(spec))


def conv(models: Any, out: Any) -> Bundle:
    """A convolution with a half-precision weight behind its Cast."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["w"], ["w32"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w32"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["y"]),
    ]
    return write(models, out, nodes, {"w": RNG.standard_normal((4, 4, 3, 3)).astype(np.float16)})


def norm(models: Any, out: Any) -> Bundle:
    """A group norm between two convolutions."""
    from onnx import helper

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Reshape", ["a", "groups"], ["b"]),
        helper.make_node("InstanceNormalization", ["b", "one", "zero"], ["c"]),
        helper.make_node("Shape", ["a"], ["shape"]),
        helper.make_node("Reshape", ["c", "shape"], ["d"]),
        helper.make_node("Conv", ["d", "w"], ["y"]),
    ]
    weights = {"w": RNG.standard_normal((4, 4, 1, 1)).astype(np.float32), "groups": np.array([0, 2, -1])}
    return write(models, out, nodes, {**weights, "one": np.ones(2, np.float32), "zero": np.zeros(2, np.float32)})


def attention(models: Any, out: Any) -> Bundle:
    """Self-attention over the pixels, as in a UNet or a ViT."""
    from onnx import helper

    nodes = [
        helper.make_node("Reshape", ["x", "tokens"], ["k"]),
        helper.make_node("Transpose", ["k"], ["q"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "w"], ["p"]),
        helper.make_node("MatMul", ["p", "k"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["maps"], axis=-1),
        helper.make_node("MatMul", ["maps", "q"], ["o"]),
        helper.make_node("Transpose", ["o"], ["ot"], perm=[0, 2, 1]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Reshape", ["ot", "shape"], ["y"]),
    ]
    return write(
        models, out, nodes, {"w": RNG.standard_normal((4, 4)).astype(np.float32), "tokens": np.array([0, 4, -1])}
    )


def int8(models: Any, out: Any) -> Bundle:
    """A convolution between quantised values, with quantised weights."""
    from onnx import helper

    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["y"], pads=[1, 1, 1, 1]),
    ]
    weights = {"w": RNG.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8), "ws": np.full(4, 0.01, np.float32)}
    return write(models, out, nodes, {**weights, "s": np.array(0.05, np.float32), "z": np.array(0, np.int8)})


@pytest.mark.parametrize("kind", [conv, norm, attention, int8])
def test_every_kind_of_network_is_built_in_half_precision_for_two_architectures(models, tmp_path, kind):
    bundle = kind(models, tmp_path / "b")
    plan = build_plan(bundle, "net", TWO)
    assert plan.path.parent.name.startswith("sm86+sm89-rtx1.")
    assert plan.path.stat().st_size == plan.bytes > 1000
    assert plan.key["precision"] == "fp16"
    assert plan.built["half_products"] >= 1
    assert plan.built["proof"] in ("network", "engine", "layers")
    Bundle.open(bundle.path)


def test_a_rebuild_gives_the_same_bytes(models, tmp_path):
    bundle = conv(models, tmp_path / "b")
    first = build_plan(bundle, "net", TWO)
    again = build_plan(bundle, "net", TWO, again=True)
    assert again.fresh and again.sha256 == first.sha256


def test_a_plan_that_is_there_is_found_and_a_damaged_one_is_built_again(tiny):
    bundle = Bundle.open(tiny)
    first = build_plan(bundle, "class_embedder", TWO)
    found = build_plan(bundle, "class_embedder", TWO)
    assert (first.fresh, found.fresh, found.sha256) == (True, False, first.sha256)
    first.path.write_bytes(first.path.read_bytes()[:1000])
    assert build_plan(bundle, "class_embedder", TWO).fresh
    assert first.path.stat().st_size == first.bytes


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_asked_precision_is_what_products_compute_in(tiny, precision):
    plan = build_plan(Bundle.open(tiny), "unet", TWO, BuildOptions(precision=precision))
    assert (plan.key["precision"], plan.built["half_products"]) == (precision, 0 if precision == "fp32" else 1)


def test_weights_have_the_names_by_which_they_will_be_refitted(tiny, monkeypatch):
    """Refitting needs a GPU; that the builder knows the weights by the names in the receipt does not."""
    from sfumato.engines import build
    from sfumato.engines.refit import weight_origins

    seen: dict[str, bool] = {}
    origins: dict[str, Any] = {}

    def look(network: Any, spec: Any, precision: Any, done: Any) -> int:
        origins.update(weight_origins(Bundle.open(tiny), spec, done))
        seen.update({n: network.definition.mark_weights_refittable(n) for n in (*origins, "another")})
        raise LookupError

    monkeypatch.setattr(build, "prove_types", look)
    with pytest.raises(LookupError):
        build_plan(Bundle.open(tiny), "unet", TWO, BuildOptions(precision="fp16"))
    assert origins["weight"] == ["weight", "float16", [3, 4, 3, 3]]
    assert origins["bias/half"] == ["bias", "float32", [3]]
    assert (seen["weight"], seen["bias/half"], seen["another"]) == (True, True, False)


def test_weights_may_be_streamed(tiny):
    plan = build_plan(Bundle.open(tiny), "unet", TWO, BuildOptions(weight_streaming=True))
    assert plan.key["options"]["weight_streaming"] is True


def test_a_plan_to_be_refitted_is_for_one_architecture_and_needs_a_driver(tiny, monkeypatch):
    monkeypatch.setattr("sfumato.engines.build.devices", list)
    bundle = Bundle.open(tiny)
    with pytest.raises(
        ParameterError, match=r"for one architecture at a time, asked was .*; write e.g. --target rtx:sm"
    ):
        build_plan(bundle, "unet", TWO, BuildOptions(refit=True))
    with pytest.raises(EngineError, match="needs the driver to build a plan that can be refitted, and it names no GPU"):
        build_plan(bundle, "unet", parse_target("rtx:sm89"), BuildOptions(refit=True))


def test_progress_goes_forward(tiny):
    seen: list[tuple[int, int]] = []
    build_plan(Bundle.open(tiny), "class_embedder", TWO, on_progress=lambda done, total, _: seen.append((done, total)))
    assert seen == sorted(seen) and {total for _, total in seen} == {1000}
    assert seen[-1][0] > 500


def test_an_unsupported_operator_is_named_with_its_node(models, tmp_path):
    """ScatterElements that adds has no form in TensorRT."""
    from onnx import helper

    index = np.zeros((1, 4, 1, 1), np.int64)
    weights = {"index": index, "updates": np.ones((1, 4, 1, 1), np.float32)}
    nodes = [
        helper.make_node("Unique", ["x"], ["u"], name="the_culprit"),
        helper.make_node("ReduceMax", ["u"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    bundle = write(models, tmp_path / "b", nodes, weights)
    with pytest.raises(EngineError, match=r"(?s)the_culprit.*Unique"):
        build_plan(bundle, "net", TWO)
    assert find_plans(bundle, "net") == []


def test_a_network_that_is_not_the_manifests_is_refused(models, tmp_path):
    """The graph gives int32 where the manifest says float32."""
    from onnx import TensorProto, helper

    spec = replace(models.EMBEDDER, outputs=(Binding("context", "int32", ("batch", 8)),))
    with BundleWriter(tmp_path / "b") as writer:
        models.save_embedder(writer.path("class_embedder.onnx"))
        bundle = writer.commit(models.manifest(spec))
    assert helper is not None and TensorProto is not None
    with pytest.raises(EngineError, match="context is FLOAT and should be INT32"):
        build_plan(bundle, "class_embedder", TWO)


def test_a_range_that_leaves_the_bundles_is_refused(tiny):
    with pytest.raises(ParameterError, match="the bundle allows 2 to 16"):
        build_plan(Bundle.open(tiny), "unet", TWO, BuildOptions(ranges={"height": (2, 4, 300)}))


def test_nothing_is_left_of_a_build_that_fails(models, tiny, cache, monkeypatch):
    monkeypatch.setattr(
        "sfumato.engines.build.prove_plan", lambda *_: (_ for _ in ()).throw(EngineError("secretly fp32"))
    )
    bundle = Bundle.open(tiny)
    with pytest.raises(EngineError, match="secretly fp32"):
        build_plan(bundle, "unet", TWO)
    assert not list((cache / "build").iterdir())
    assert find_plans(bundle, "unet") == []


def test_a_product_that_computes_in_float32_against_orders_is_refused(tiny, monkeypatch):
    """The graph is left in float32, as a builder that ignores precision would have it."""
    from sfumato.engines import build_network

    def ignore(model: Any, precision: Any, weights: Any, **options: Any) -> Any:
        return build_network.Retyped(model, halves=1)

    monkeypatch.setattr(build_network, "retype", ignore)
    with pytest.raises(EngineError, match="fp16 was asked, but 1 of 1 products compute in float32"):
        build_plan(Bundle.open(tiny), "unet", TWO, BuildOptions(precision="fp16"))


CODE = """
import sys
from sfumato.engines.build import build_plan
from sfumato.engines.build_target import parse_target
from sfumato.engines.bundle import Bundle
plan = build_plan(Bundle.open(sys.argv[1]), "unet", parse_target("rtx:sm89"))
print(plan.fresh, plan.sha256)
"""


def test_of_two_processes_one_builds_and_the_other_waits_and_finds(tiny):
    command = [sys.executable, "-c", CODE, str(tiny)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = sorted(process.communicate(timeout=300)[0].split() for process in both)
    assert [words[0] for words in told] == ["False", "True"]
    assert told[0][1] == told[1][1]


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, which it does not where a shell started this in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_build_and_leaves_nothing(models, tmp_path, cache, interruptible):
    bundle = conv(models, tmp_path / "b")
    stop = threading.Event()

    def interrupt(done: int, total: int, phase: str) -> None:
        if done > 0 and not stop.is_set():
            stop.set()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)  # the main thread sees it before the builder has ended

    with pytest.raises(KeyboardInterrupt):
        build_plan(bundle, "net", TWO, on_progress=interrupt)
    assert find_plans(bundle, "net") == []
    assert not list((cache / "build").iterdir())
    assert build_plan(bundle, "net", TWO).fresh


def test_an_error_in_the_callback_ends_the_build_and_is_raised(models, tmp_path, cache):
    bundle = conv(models, tmp_path / "b")

    def fail(done: int, total: int, phase: str) -> None:
        raise LookupError("from the bar")

    with pytest.raises(LookupError, match="from the bar"):
        build_plan(bundle, "net", TWO, on_progress=fail)
    assert find_plans(bundle, "net") == []


def test_a_build_runs_in_any_thread(models, tmp_path, cache):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(build_plan, conv(models, tmp_path / "b"), "net", TWO).result().fresh


def test_the_receipt_says_what_it_took(tiny):
    plan = build_plan(Bundle.open(tiny), "class_embedder", TWO)
    receipt = json.loads(plan.path.with_suffix(".json").read_text())
    assert receipt["key"]["profile"]["y"] == {"min": [1], "opt": [1], "max": [2]}
    assert receipt["built"]["seconds"] > 0 and receipt["built"]["peak_bytes"] > 1 << 20
    assert Dimension(1, 1, 4) == Bundle.open(tiny).network("class_embedder").dimensions["batch"]
