from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import engine_models as models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from sfumato.calibration.parity import compare, verify_bundle
from sfumato.engines.bundle import Bundle, write_bundle
from sfumato.engines.target import cpu_precision
from sfumato.errors import ParameterError

INSTALLED = [name for name in ("openvino", "onnxruntime") if importlib.util.find_spec(name)]


@pytest.fixture
def tiny(tmp_path) -> Bundle:
    return models.write_tiny(tmp_path / "tiny")


def rewrite(bundle: Bundle, out: Path, store=None, **changes) -> Bundle:
    """The bundle with a changed UNet spec or other stored tensors."""
    manifest = bundle.manifest
    networks = {**manifest.networks, "unet": replace(manifest.networks["unet"], **changes)}
    files: dict[str, bytes | Path] = {name: bundle.file(name) for name in manifest.files}
    if store is not None:
        tensors = load_file(bundle.file("unet.reference.safetensors"))
        files["unet.reference.safetensors"] = to_bytes(store(tensors))
    return write_bundle(out, replace(manifest, networks=networks), files)


def test_a_sound_bundle_passes_on_every_backend(tiny):
    report = verify_bundle(tiny, threads=1)
    assert report.passed
    assert report.verified
    assert {(row.network, row.backend) for row in report.rows} == {
        (network, backend) for network in ("unet", "class_embedder") for backend in INSTALLED
    }
    for row in report.rows:
        assert row.deviation is not None
        assert row.tolerance is not None
        assert row.deviation.finite
        assert row.deviation.relative <= row.tolerance
        assert row.deviation.cosine > 0.999
        assert row.reason == ""
    tree = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert tree["passed"] is True
    assert tree["networks"][0]["deviation"]["relative"] < 1e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.skipif("openvino" not in INSTALLED, reason="needs openvino")
def test_the_precision_and_the_backends_can_be_chosen(tiny, precision):
    if precision == "bf16" and cpu_precision() != "bf16":
        pytest.skip("needs a processor with bf16")
    report = verify_bundle(tiny, ["openvino"], precision=precision, threads=1)
    row = report.rows[0]
    assert (row.network, row.backend, row.precision) == ("unet", "openvino", precision)
    assert row.tolerance == {"fp32": 1e-4, "bf16": 2e-2}[precision]
    assert row.passed


def test_a_deviation_beyond_the_tolerance_fails(tiny, tmp_path):
    bundle = rewrite(tiny, tmp_path / "b", lambda t: {**t, "out/prediction": t["out/prediction"] * 1.1})
    report = verify_bundle(bundle, threads=1)
    assert not report.passed
    rows = [row for row in report.rows if row.network == "unet"]
    assert {row.status for row in rows} == {"failed"}
    assert "exceeds the manifest's" in rows[0].reason
    assert all(row.passed for row in report.rows if row.network == "class_embedder")


def test_outputs_that_are_not_finite_fail_and_are_null_in_json(tiny, tmp_path):
    def poison(tensors):
        tensors["in/x"][0, 0, 0, 0] = np.nan
        return tensors

    report = verify_bundle(rewrite(tiny, tmp_path / "b", poison), threads=1)
    row = report.rows[0]
    assert (row.status, row.reason) == ("failed", "its outputs hold NaN or infinity")
    assert '"max_abs": null' in json.dumps(report.to_json(), allow_nan=False)


def test_what_cannot_be_checked_does_not_pass(tiny, tmp_path):
    without = verify_bundle(rewrite(tiny, tmp_path / "a", reference=None), threads=1)
    assert not without.passed
    assert (without.rows[0].status, without.rows[0].backend) == ("unchecked", "")
    assert "stores no reference" in without.rows[0].reason

    loose = verify_bundle(rewrite(tiny, tmp_path / "b", tolerance={"fp16": 1.0}), threads=1)
    assert not loose.passed
    assert loose.rows[0].status == "unchecked"
    assert "no tolerance for fp32, it has fp16" in loose.rows[0].reason

    nowhere = verify_bundle(tiny, [])
    assert not nowhere.passed
    assert {row.status for row in nowhere.rows} == {"unchecked"}


def test_a_network_that_does_not_run_is_an_error_with_its_reason(tiny, tmp_path):
    def drop(tensors):
        return {"in/x": tensors["in/x"], "out/prediction": tensors["out/prediction"]}

    report = verify_bundle(rewrite(tiny, tmp_path / "b", drop), threads=1)
    assert report.rows[0].status == "error"
    assert "its bindings are in/t, in/x, out/prediction" in report.rows[0].reason
    report = verify_bundle(tiny, ["tensorrt"])
    assert {row.status for row in report.rows} == {"error"}
    assert "tensorrt" in report.rows[0].reason


def test_backends_of_a_gpu_are_verified_where_they_work(tiny, monkeypatch):
    """ONNX Runtime's always; TensorRT's only with a plan for this GPU, since plans are optional in a bundle."""
    real = pytest.importorskip("onnxruntime")
    import fake_cuda
    from fake_onnxruntime import FakeOnnxRuntime

    import sfumato.calibration.parity as module
    import sfumato.engines.backends as backends

    fake_cuda.install(monkeypatch)
    fake = FakeOnnxRuntime(real)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    works = {"onnxruntime": None, "onnxruntime_cuda": None, "tensorrt": None, "tensorrt_rtx": "not installed"}
    monkeypatch.setattr(module, "available_backends", lambda: works)
    monkeypatch.setattr(backends, "available_backends", lambda: works)
    report = verify_bundle(tiny, threads=1)
    assert report.passed
    assert [(row.network, row.backend, row.precision) for row in report.rows] == [
        (network, backend, "fp32")
        for network in tiny.manifest.networks
        for backend in ("onnxruntime", "onnxruntime_cuda")
    ]
    assert [kind for kind, _ in fake.log.runs] == ["record", "record"]

    monkeypatch.setattr(module, "available_backends", lambda: {"tensorrt": None})
    alone = verify_bundle(tiny)
    assert not alone.passed, "a network that nothing could run has not passed"
    assert {row.status for row in alone.rows} == {"unchecked"}
    assert "no plan of it for this GPU; run: sfumato build" in alone.rows[0].reason

    monkeypatch.setattr(module, "available_backends", lambda: works)
    monkeypatch.setattr(module, "automatic_plan", lambda bundle, network, precision: ("tensorrt", object()))
    rows = verify_bundle(tiny, threads=1).rows
    assert [row.backend for row in rows if row.backend.startswith("tensorrt")] == ["tensorrt", "tensorrt"]


def test_the_stored_shapes_need_not_be_the_smallest(tiny, tmp_path):
    feeds = models.feeds(1, 16, 2, seed=5)

    def other(tensors):
        tensors = {f"in/{name}": array for name, array in feeds.items()}
        return {**tensors, "out/prediction": models.expected(**feeds).astype(np.float32)}

    assert verify_bundle(rewrite(tiny, tmp_path / "b", other), threads=1).passed


@given(st.floats(1e-6, 1e6), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_comparing_is_relative_and_takes_the_worst(scale, size, seed):
    rng = np.random.default_rng(seed)
    a, noise = rng.standard_normal((2, size)) + 0.1
    near = compare({"a": scale * a + 0, "b": scale * (a + noise)}, {"a": scale * a, "b": scale * a})
    assert near.relative == pytest.approx(np.linalg.norm(noise) / np.linalg.norm(a), rel=1e-6)
    assert near.max_abs == pytest.approx(scale * np.abs(noise).max(), rel=1e-6)
    assert near.cosine <= 1 + 1e-12


def test_comparing_handles_the_ends():
    zero, one = np.zeros(3), np.ones(3)
    assert compare({"a": zero}, {"a": zero}).relative == 0
    assert compare({"a": one}, {"a": zero}).relative == math.inf
    assert compare({"a": zero}, {"a": one}).cosine == 0
    assert not compare({"a": np.array([np.inf])}, {"a": np.ones(1)}).finite
    assert compare({"a": np.zeros(0)}, {"a": np.zeros(0)}).relative == 0
    with pytest.raises(ParameterError, match="no result is named 'b'"):
        compare({"a": one}, {"b": one})
    with pytest.raises(ParameterError, match=r"'a' has shape \(3,\), its reference \(1,\)"):
        compare({"a": one}, {"a": one[:1]})
