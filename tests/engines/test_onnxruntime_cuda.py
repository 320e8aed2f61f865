"""ONNX Runtime on a GPU: options, order of calls and numbers, on fakes of cuda.core and of the CUDA provider."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace

import fake_cuda
import numpy as np
import pytest

from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.engine import Engine
from sfumato.engines.onnxruntime import OnnxRuntimeEngine
from sfumato.errors import BindingError, EngineError

real = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.fixture
def machine(monkeypatch):
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def library(machine, monkeypatch):
    """Installs a fake onnxruntime with the given traits."""
    from fake_onnxruntime import FakeOnnxRuntime

    def install(**traits):
        fake = FakeOnnxRuntime(real, **traits)
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)
        return fake

    return install


@pytest.fixture
def bundle(tiny):
    return Bundle.open(tiny)


@pytest.fixture
def unet(library, bundle):
    """An engine of the tiny UNet on the fake GPU, with the library it runs on."""
    fake = library()
    with OnnxRuntimeEngine(bundle, bundle.network("unet"), device="cuda", threads=1) as engine:
        engine.fake = fake
        yield engine


def device(engine, feeds):
    return {name: engine.cuda.upload(array, engine.stream) for name, array in feeds.items()}


def test_a_cpu_engine_has_no_gpu(bundle, machine, models):
    with OnnxRuntimeEngine(bundle, bundle.network("unet"), threads=1) as engine:
        assert (engine.backend, engine.precision) == ("onnxruntime", "fp32")
        assert not hasattr(engine, "cuda")
        assert not hasattr(engine, "stream")
        with pytest.raises(BindingError, match="input 'x' is a DeviceArray, need a NumPy array"):
            from sfumato.engines.cuda import open_cuda

            cuda = open_cuda()
            feeds = models.feeds()
            engine(x=cuda.upload(feeds["x"], cuda.stream()), t=feeds["t"])


def test_the_provider_is_told_what_it_should_be(unet):
    assert isinstance(unet, Engine)
    assert (unet.backend, unet.precision) == ("onnxruntime_cuda", "fp32")
    (session,) = unet.fake.log.sessions
    assert session.told == {
        "device_id": "0",
        "user_compute_stream": str(unet.stream.handle),
        "enable_cuda_graph": "1",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    assert session.options.enable_mem_pattern is False
    assert session.options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
    assert unet.fake.preloaded == 1


def test_the_fake_takes_what_the_real_library_takes(library):
    import fake_onnxruntime

    for name in ("bind_input", "bind_output", "clear_binding_outputs", "get_outputs"):
        theirs = inspect.signature(getattr(real.IOBinding, name)).parameters
        assert list(inspect.signature(getattr(fake_onnxruntime.Binding, name)).parameters) == list(theirs)
    for name in ("io_binding", "run_with_iobinding", "get_providers", "get_inputs", "get_outputs"):
        assert callable(getattr(real.InferenceSession, name))
    theirs = inspect.signature(real.InferenceSession.run_with_iobinding).parameters
    assert list(inspect.signature(fake_onnxruntime.Session.run_with_iobinding).parameters)[:3] == list(theirs)[:3]
    real.RunOptions().add_run_config_entry("gpu_graph_id", "1")
    assert hasattr(real.OrtValue, "shape")


def test_tf32_and_no_graphs_can_be_asked_for(library, bundle, models):
    fake = library()
    spec = bundle.network("unet")
    with OnnxRuntimeEngine(bundle, spec, device="cuda", graphs=False, tf32=True, threads=1) as engine:
        told = fake.log.sessions[0].told
        assert (told["use_tf32"], told["enable_cuda_graph"]) == ("1", "0")
        assert fake.log.sessions[0].options.enable_mem_pattern is True
        for seed in range(3):
            feeds = models.feeds(seed=seed)
            np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
    assert [kind for kind, _ in fake.log.runs] == ["run"] * 3


def test_numpy_gives_numpy_on_every_call_and_a_graph_for_each_set_of_shapes(unet, models):
    for seed, shape in enumerate([(1, 2, 2), (2, 4, 6), (1, 2, 2), (2, 4, 6), (1, 2, 2)]):
        feeds = models.feeds(*shape, seed=seed)
        result = unet(**feeds)
        assert list(result) == ["prediction"]
        assert isinstance(result["prediction"], np.ndarray)
        np.testing.assert_allclose(result["prediction"], models.expected(**feeds), atol=1e-4)
    assert unet.fake.log.runs == [("record", "1"), ("record", "2"), ("replay", "1"), ("replay", "2"), ("replay", "1")]


def test_device_arrays_give_device_arrays_and_nothing_is_waited_for(unet, machine, models):
    feeds = models.feeds(seed=3)
    given = device(unet, feeds)
    result = unet(**given)["prediction"]
    assert (result.shape, result.dtype, result.cuda) == ((2, 3, 4, 6), np.float32, unet.cuda)
    assert machine.streams[unet.stream.handle].queue, "the work was waited for"
    np.testing.assert_allclose(result.numpy(unet.stream), models.expected(**feeds), atol=1e-4)


def test_a_mixture_is_enqueued_and_numpy_inputs_may_change_at_once(unet, models):
    """Several steps are enqueued before any is done, with the same NumPy array written again for each."""
    x = models.feeds(seed=5)["x"]
    t = np.zeros(2, np.float32)
    array = unet.cuda.upload(x, unet.stream)
    results = []
    for step in range(4):
        t[:] = step
        out = unet(x=array, t=t)["prediction"]
        kept = unet.cuda.empty(out.shape, out.dtype)
        kept.copy_from(out, unet.stream)
        results.append(kept)
    t[:] = np.nan
    for step, kept in enumerate(results):
        expected = models.expected(x, np.full(2, step, np.float32))
        np.testing.assert_allclose(kept.numpy(unet.stream), expected, atol=1e-4)


def test_an_output_can_be_fed_back(unet, models):
    feeds = models.feeds(seed=6)
    first = unet(**device(unet, feeds))["prediction"].reshape((144,))
    got = unet(x=device(unet, feeds)["x"], t=first[2:4])["prediction"].numpy(unet.stream)
    t = models.expected(**feeds).reshape(-1)[2:4]
    np.testing.assert_allclose(got, models.expected(feeds["x"], t), atol=1e-3)


def test_outputs_whose_shape_does_not_follow_are_found_by_a_run(library, models, tmp_path):
    """As a VAE's, whose pixels are eight times its latents: nothing in the manifest says so."""
    outputs = (replace(models.UNET.outputs[0], shape=("batch", 3, "rows", "columns")),)
    dimensions = {**models.UNET.dimensions, "rows": models.UNET.dimensions["height"]}
    dimensions["columns"] = dimensions["rows"]
    spec = replace(models.UNET, outputs=outputs, dimensions=dimensions, reference=None)
    with BundleWriter(tmp_path / "b") as writer:
        models.save_unet(writer.path("unet.onnx"))
        bundle = writer.commit(models.manifest(spec))
    fake = library()
    with OnnxRuntimeEngine(bundle, bundle.network("unet"), device="cuda", threads=1) as engine:
        for seed in range(2):
            feeds = models.feeds(seed=seed)
            np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
    assert fake.log.runs == [("run", "-1"), ("record", "1"), ("replay", "1")]


def test_old_shapes_are_forgotten_and_their_graph_is_never_replayed(library, bundle, models, machine):
    fake = library()
    with OnnxRuntimeEngine(bundle, bundle.network("unet"), device="cuda", shapes=2, threads=1) as engine:
        for batch in (1, 2, 3, 1):
            feeds = models.feeds(batch, seed=batch)
            np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
        held = machine.live
        for batch in (2, 3, 1):
            engine(**models.feeds(batch))
        assert machine.live <= 2 * held
    assert [kind for kind, _ in fake.log.runs] == ["record"] * 7
    assert len({number for _, number in fake.log.runs}) == 7


def test_closing_gives_the_memory_back(library, bundle, models, machine):
    library()
    engine = OnnxRuntimeEngine(bundle, bundle.network("unet"), device="cuda", threads=1)
    engine(**models.feeds())
    assert machine.live > 0
    engine.close()
    engine.close()
    assert machine.live == 0
    with pytest.raises(EngineError, match="the engine was closed; open it again"):
        engine(**models.feeds())


def test_a_network_that_cannot_be_recorded_runs_without_graphs(library, bundle, models):
    fake = library(on_cpu=True)
    with OnnxRuntimeEngine(bundle, bundle.network("unet"), device="cuda", threads=1) as engine:
        for seed in range(2):
            feeds = models.feeds(seed=seed)
            np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
    assert [session.told["enable_cuda_graph"] for session in fake.log.sessions] == ["1", "0"]
    assert fake.log.runs == [("run", "0")] * 2


def test_a_silent_fall_back_to_the_processor_is_refused_with_the_loaders_reason(library, bundle, monkeypatch, capsys):
    import sfumato.engines.onnxruntime_provider as provider

    library(loads=False)
    monkeypatch.setattr(provider, "why_not", lambda library: "libcudnn.so.9: cannot open shared object file")
    with pytest.raises(
        EngineError, match=r"opened the network on the processor: libcudnn\.so\.9: .*run: sfumato doctor"
    ):
        OnnxRuntimeEngine(bundle, bundle.network("unet"), device="cuda")
    monkeypatch.setattr(provider, "why_not", lambda library: "")
    with pytest.raises(EngineError, match=r"on the processor: Failed to load libcublasLt\.so\.13"):
        OnnxRuntimeEngine(bundle, bundle.network("unet"), device="cuda")
    assert capsys.readouterr().out == "", "the package prints nothing"


def test_the_loaders_reason_is_read_from_the_provider_itself(tmp_path):
    from types import SimpleNamespace

    from sfumato.engines.onnxruntime_provider import why_not

    (tmp_path / "capi").mkdir()
    library = SimpleNamespace(__file__=str(tmp_path / "__init__.py"))
    assert "has no library onnxruntime_providers_shared" in why_not(library)
    for stem in ("shared", "cuda"):
        (tmp_path / f"capi/libonnxruntime_providers_{stem}.so").write_bytes(b"no library")
    assert "libonnxruntime_providers_shared.so" in why_not(library)


def test_a_library_for_processors_alone_is_named(library, bundle):
    library(built=False)
    with pytest.raises(
        EngineError, match=r"made for processors alone; run: pip uninstall -y onnxruntime && pip install"
    ):
        OnnxRuntimeEngine(bundle, bundle.network("unet"), device="cuda")


def test_fp16_opens_the_graph_that_a_builder_gets(library, bundle, models):
    """ONNX Runtime's CPU kernels widen a half-precision Conv again, so it is the graph that is looked at."""
    import onnx

    fake = library()
    with OnnxRuntimeEngine(bundle, bundle.network("unet"), device="cuda", precision="fp16", threads=1) as engine:
        assert engine.precision == "fp16"
        feeds = models.feeds(seed=8)
        np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=2e-2)
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(fake.log.sessions[0].model)).graph
    (conv,) = (node for node in graph.node if node.op_type == "Conv")
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert [types[name] for name in conv.input[:2]] == [onnx.TensorProto.FLOAT16] * 2


def test_precisions_that_are_not_to_be_had_are_refused(library, bundle):
    library()
    spec = bundle.network("unet")
    with pytest.raises(
        EngineError, match=r"computes in fp32 or fp16 on a GPU, asked was bf16; open it with backend='te"
    ):
        OnnxRuntimeEngine(bundle, spec, device="cuda", precision="bf16")
    with pytest.raises(EngineError, match="computes in fp32 on a CPU, asked was fp16"):
        OnnxRuntimeEngine(bundle, spec, precision="fp16")


def test_a_failing_run_is_reported_and_the_next_may_succeed(unet, models, monkeypatch):
    feeds = models.feeds(seed=9)
    session = unet.fake.log.sessions[0]
    with monkeypatch.context() as patch:
        patch.setattr(
            type(session), "run_with_iobinding", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA error 2"))
        )
        with pytest.raises(EngineError, match=r"unet: ONNX Runtime failed while running \(CUDA error 2\)"):
            unet(**feeds)
    np.testing.assert_allclose(unet(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
