"""ONNX Runtime on a real GPU: every network of the bundles against the processor, device arrays, graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfumato.calibration.parity import compare, verify_bundle
from sfumato.engines.bundle import Bundle
from sfumato.engines.engine import available_backends
from sfumato.engines.onnxruntime import OnnxRuntimeEngine

pytestmark = pytest.mark.gpu

BUNDLES = sorted(path.parent for path in (Path(__file__).parents[2] / "bundles").glob("*/manifest.json"))
NETWORKS = [(path, name) for path in BUNDLES for name in Bundle.open(path, verify=False).manifest.networks]
each = pytest.mark.parametrize(("path", "network"), NETWORKS, ids=[f"{p.name}-{n}" for p, n in NETWORKS])


@pytest.fixture(autouse=True)
def backend():
    reason = available_backends()["onnxruntime_cuda"]
    if reason is not None:
        pytest.skip(reason)


def reference(bundle, network):
    """The stored inputs of a network, and what ONNX Runtime computes of them on the processor."""
    spec = bundle.network(network)
    tensors = bundle.tensors(spec.reference)
    feeds = {b.name: tensors[f"in/{b.name}"] for b in spec.inputs}
    with OnnxRuntimeEngine(bundle, spec) as engine:
        return spec, feeds, {name: array.copy() for name, array in engine(**feeds).items()}


@each
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("graphs", [True, False])
def test_it_agrees_with_the_processor_on_every_call(path, network, precision, graphs):
    """The first call records, the later ones replay; other shapes in between have a graph of their own."""
    bundle = Bundle.open(path, verify=False)
    spec, feeds, expected = reference(bundle, network)
    if precision not in spec.tolerance:
        pytest.skip(f"the manifest gives no tolerance for {precision}")
    limit = 1e-3 if precision == "fp32" else spec.tolerance[precision]
    with OnnxRuntimeEngine(bundle, spec, device="cuda", precision=precision, graphs=graphs) as engine:
        assert engine.backend == "onnxruntime_cuda"
        one = {name: np.ascontiguousarray(array[:1]) for name, array in feeds.items()}
        for call in (feeds, one, feeds, one, feeds):
            result = engine(**call)
            if call is feeds:
                found = compare(result, expected)
                assert found.finite
                assert found.relative <= limit


@each
def test_device_arrays_stay_on_the_device(path, network):
    bundle = Bundle.open(path, verify=False)
    spec, feeds, expected = reference(bundle, network)
    with OnnxRuntimeEngine(bundle, spec, device="cuda") as engine:
        given = {name: engine.cuda.upload(array, engine.stream) for name, array in feeds.items()}
        for _ in range(3):
            outputs = engine(**given)
            results = {name: array.numpy(engine.stream) for name, array in outputs.items()}
            assert compare(results, expected).relative <= 1e-3


def test_steps_are_enqueued_with_a_host_array_that_changes():
    bundle = Bundle.open(BUNDLES[0], verify=False)
    spec, feeds, _ = reference(bundle, "restorer")
    batch = len(feeds["t"])
    with OnnxRuntimeEngine(bundle, spec, device="cuda") as engine, OnnxRuntimeEngine(bundle, spec) as cpu:
        x = engine.cuda.upload(feeds["x"], engine.stream)
        t = np.zeros(batch, np.float32)
        kept = []
        for step in range(1, 6):
            t[:] = step
            out = engine(x=x, t=t)["x0"]
            copy = engine.cuda.empty(out.shape, out.dtype)
            copy.copy_from(out, engine.stream)
            kept.append(copy)
        for step, copy in enumerate(kept, 1):
            expected = cpu(x=feeds["x"], t=np.full(batch, step, np.float32))
            assert compare({"x0": copy.numpy(engine.stream)}, expected).relative <= 1e-3


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_verify_passes(path):
    report = verify_bundle(Bundle.open(path), ["onnxruntime_cuda"])
    assert report.passed, report


def test_tf32_is_off():
    """TF32 has 10 bits of mantissa: with it products deviate by about 1e-3, without by about 1e-6."""
    bundle = Bundle.open(BUNDLES[0], verify=False)
    spec, feeds, expected = reference(bundle, "restorer")
    with OnnxRuntimeEngine(bundle, spec, device="cuda") as exact:
        assert compare(exact(**feeds), expected).relative < 1e-4
