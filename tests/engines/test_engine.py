from __future__ import annotations

import importlib.util
import re

import numpy as np
import pytest

import sfumato.engines.engine as module
from sfumato.engines.bundle import Bundle
from sfumato.engines.engine import Engine, available_backends, check_finite, default_precision, open_engine
from sfumato.engines.target import CpuFacts, cpu_precision, detect
from sfumato.errors import BindingError, BundleError, EngineError, MissingDependency, NonFiniteError, ParameterError

INSTALLED = [name for name in ("openvino", "onnxruntime") if importlib.util.find_spec(name)]
backends = pytest.mark.parametrize("backend", INSTALLED)


@pytest.fixture
def bundle(tiny):
    return Bundle.open(tiny)


@backends
@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 4, 6), (4, 16, 2)])
def test_an_engine_gives_what_the_formula_gives(bundle, models, backend, shape):
    feeds = models.feeds(*shape)
    with open_engine(bundle, "unet", backend=backend, precision="fp32", threads=1) as engine:
        assert isinstance(engine, Engine)
        assert (engine.backend, engine.precision, engine.spec.name) == (backend, "fp32", "unet")
        for _ in range(3):
            result = engine(**feeds)
            assert list(result) == ["prediction"]
            assert result["prediction"].dtype == np.float32
            np.testing.assert_allclose(result["prediction"], models.expected(**feeds), atol=1e-4)


@backends
def test_integer_inputs_are_looked_up(bundle, backend):
    with open_engine(bundle, "class_embedder", backend=backend, threads=1) as engine:
        context = engine(y=np.array([9, 0]))["context"]
    np.testing.assert_array_equal(context, [np.arange(72, 80), np.arange(8)])


@backends
def test_outputs_are_written_again_for_the_same_shapes_only(bundle, models, backend):
    with open_engine(bundle, "unet", backend=backend, precision="fp32", threads=1) as engine:
        first = engine(**models.feeds(1, seed=1))["prediction"]
        before = first.copy()
        other = engine(**models.feeds(2, seed=2))["prediction"]
        np.testing.assert_array_equal(first, before)
        again = engine(**models.feeds(1, seed=3))["prediction"]
        assert again is first
        assert not np.array_equal(first, before)
        assert not np.may_share_memory(first, other)


@backends
def test_awkward_arrays_are_taken(bundle, models, backend):
    """Slices, transposes, read-only arrays, and the engine's own output (fed back) give the same numbers."""
    feeds = models.feeds(2, 8, 8)
    x, t = feeds["x"], feeds["t"]
    frozen = x.copy()
    frozen.flags.writeable = False
    variants = [x[::-1], x.transpose(0, 1, 3, 2), np.broadcast_to(x[:1], x.shape), frozen, np.asfortranarray(x)]
    with open_engine(bundle, "unet", backend=backend, precision="fp32", threads=1) as engine:
        for _ in range(2):
            for variant in variants:
                got = engine(x=variant, t=t)["prediction"]
                np.testing.assert_allclose(got, models.expected(variant, t), atol=1e-4)
        own = engine(x=x, t=t)["prediction"]
        np.testing.assert_allclose(engine(x=x, t=own[:, 0, 0, 0])["prediction"].shape, own.shape)
        view = own.reshape(-1)[:2]
        expected = models.expected(x, view.copy())
        np.testing.assert_allclose(engine(x=x, t=view)["prediction"], expected, atol=1e-4)


@backends
def test_inputs_changed_in_place_are_seen(bundle, models, backend):
    feeds = models.feeds()
    with open_engine(bundle, "unet", backend=backend, precision="fp32", threads=1) as engine:
        for step in range(3):
            feeds["x"] *= 1 + step
            feeds["t"][:] = step
            np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=1e-3)


@backends
def test_wrong_feeds_are_refused_before_the_library_sees_them(bundle, models, backend):
    with open_engine(bundle, "unet", backend=backend, precision="fp32", threads=1) as engine:
        with pytest.raises(BindingError, match=re.escape("unet: input 't' is float64, the graph takes float32")):
            engine(x=models.feeds()["x"], t=np.zeros(2))
        with pytest.raises(BindingError, match="height is 18 in 'x', the bundle allows 2 to 16; use 16"):
            engine(**models.feeds(1, 18, 4))


@backends
def test_a_closed_engine_says_so(bundle, models, backend):
    engine = open_engine(bundle, "unet", backend=backend, precision="fp32")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="the engine was closed; open it again"):
        engine(**models.feeds())


@backends
def test_a_manifest_that_disagrees_with_the_graph_is_refused(models, tmp_path, backend):
    from dataclasses import replace

    from sfumato.engines.binding import Binding
    from sfumato.engines.bundle import BundleWriter

    renamed = (Binding("image", "float32", ("batch", 4, "height", "width")), models.UNET.inputs[1])
    retyped = (models.UNET.inputs[0], Binding("t", "int64", ("batch",)))
    for inputs, message in ((renamed, "reads the inputs t, x from"), (retyped, "reads input 't' as float32 of 1 axes")):
        with BundleWriter(tmp_path / "b") as writer:
            models.save_unet(writer.path("unet.onnx"))
            bundle = writer.commit(models.manifest(replace(models.UNET, inputs=inputs, reference=None)))
        feeds = {b.name: np.ones([2] * len(b.shape), b.dtype) for b in inputs}
        feeds[inputs[0].name] = np.ones((2, 4, 2, 2), np.float32)
        with pytest.raises(EngineError, match=re.escape(message)):
            open_engine(bundle, "unet", backend=backend)(**feeds)


@backends
def test_a_broken_graph_is_refused_readably(models, tmp_path, backend):
    from dataclasses import replace

    from sfumato.engines.bundle import write_bundle

    spec = replace(models.UNET, weights=(), reference=None)
    bundle = write_bundle(tmp_path / "b", models.manifest(spec), {"unet.onnx": models.message(2, b"nothing")})
    with pytest.raises(EngineError, match="^unet: .* cannot (open|compile)"):
        open_engine(bundle, "unet", backend=backend)(**models.feeds())


def test_what_cannot_be_opened_is_said(bundle):
    with pytest.raises(BundleError, match="has no network 'vae'"):
        open_engine(bundle, "vae")
    with pytest.raises(EngineError, match="backend is 'tflite', need one of auto, openvino"):
        open_engine(bundle, "unet", backend="tflite")
    with pytest.raises(EngineError, match="'torch' is for gradients alone, .*; use openvino or onnx"):
        open_engine(bundle, "unet", backend="torch")
    with pytest.raises(ParameterError, match="precision is 'int8'"):
        open_engine(bundle, "unet", precision="int8")
    with pytest.raises(ParameterError, match="threads is 0, need 1 or more"):
        open_engine(bundle, "unet", threads=0)


@pytest.mark.skipif("onnxruntime" not in INSTALLED, reason="needs onnxruntime")
def test_the_reference_computes_in_fp32_only(bundle):
    with pytest.raises(
        EngineError, match="ONNX Runtime computes in fp32 on a CPU, asked was bf16; open it with backend"
    ):
        open_engine(bundle, "unet", backend="onnxruntime", precision="bf16")


def test_backends_are_found_without_importing_them(monkeypatch, bundle):
    state = available_backends()
    assert list(state) == ["openvino", "onnxruntime", "torch", "tensorrt", "tensorrt_rtx", "onnxruntime_cuda"]
    assert [name for name in ("openvino", "onnxruntime") if state[name] is None] == INSTALLED
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert available_backends()["openvino"] == "not installed; run: pip install 'sfumato[cpu]'"
    extras = {"auto": "cpu", "openvino": "cpu", "onnxruntime": "ort"}
    for backend, extra in {**extras, "tensorrt": "tensorrt", "tensorrt_rtx": "rtx", "onnxruntime_cuda": "cuda"}.items():
        with pytest.raises(MissingDependency, match=re.escape(f"run: pip install 'sfumato[{extra}]'")):
            open_engine(bundle, "unet", backend=backend)


def test_a_backend_for_a_gpu_says_what_it_lacks(monkeypatch, bundle):
    """Installed, on a machine whose driver names no GPU."""
    from sfumato.engines import backends
    from sfumato.engines.doctor import Environment

    packages = {"tensorrt-rtx-cu13": "1.7.1", "onnxruntime-gpu": "1.31.1", "tensorrt": "11.4.0", "onnx": "1.23"}
    env = Environment((3, 11), "Linux", CpuFacts("m", "x86_64", 1, ()), packages)
    monkeypatch.setattr(backends, "environment", lambda: env)
    monkeypatch.setattr(backends, "_installed", lambda name: True)
    for backend, reason in (
        ("tensorrt", "tensorrt 11.4.0 is installed, but libcuda is not found"),
        ("tensorrt_rtx", "the driver names no GPU: plans are built here, not run"),
        ("onnxruntime_cuda", "libcuda is not found: it computes on the processor"),
    ):
        with pytest.raises(EngineError, match=f"backend '{backend}' cannot work here: .*{re.escape(reason)}"):
            open_engine(bundle, "unet", backend=backend)


def test_the_default_precision_needs_the_processor_and_the_manifest(models, monkeypatch):
    from dataclasses import replace

    for flags, tolerance, expected in (
        (("amx_bf16",), {"fp32": 1.0, "bf16": 1.0}, "bf16"),
        (("avx512_bf16",), {"bf16": 1.0}, "bf16"),
        (("amx_bf16",), {"fp32": 1.0}, "fp32"),
        (("avx2",), {"fp32": 1.0, "bf16": 1.0}, "fp32"),
    ):
        facts = CpuFacts("m", "x86_64", 1, flags)
        monkeypatch.setattr(module, "cpu_precision", lambda facts=facts: cpu_precision(facts))
        assert default_precision(replace(models.UNET, tolerance=tolerance)) == expected


@pytest.mark.skipif(not {"amx_bf16", "avx512_bf16"} & set(detect().flags), reason="needs a processor with bf16")
@pytest.mark.skipif("openvino" not in INSTALLED, reason="needs openvino")
def test_bf16_is_close_and_is_really_used(bundle, models):
    feeds = models.feeds(4, 16, 16)
    with open_engine(bundle, "unet", threads=1) as fast, open_engine(bundle, "unet", precision="fp32") as exact:
        assert fast.precision == "bf16"
        a, b = fast(**feeds)["prediction"], exact(**feeds)["prediction"]
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert 1e-4 < error < 2e-2


def test_finite_arrays_pass_and_others_are_named():
    good = np.full((3, 4), 3e38, np.float32)
    check_finite("unet", 0, a=good, b=np.arange(3), c=np.zeros(0, np.float32))
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[1, 2] = value
        with pytest.raises(NonFiniteError, match="unet: 'eps' is not finite at step 7") as caught:
            check_finite("unet", 7, x=good, eps=bad)
        assert (caught.value.network, caught.value.step, caught.value.tensor) == ("unet", 7, "eps")
    both = np.array([np.inf, -np.inf], np.float32)
    with pytest.raises(NonFiniteError), np.errstate(all="raise"):
        check_finite("unet", both=both)
