"""The TensorRT engine on a fake GPU: calls, shapes, memory, graphs, and what it refuses."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace

import fake_cuda
import fake_nvidia
import numpy as np
import pytest

from sfumato.engines import backends, tensorrt_shared
from sfumato.engines.build_options import BuildOptions
from sfumato.engines.bundle import Bundle
from sfumato.engines.engine import Engine, open_engine
from sfumato.engines.nvidia import CudaDevice
from sfumato.engines.plan import find_plans
from sfumato.engines.tensorrt import TensorRTEngine
from sfumato.errors import BindingError, EngineError, MissingDependency, ParameterError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

KINDS = ["tensorrt", "tensorrt_rtx"]
FP32 = fake_nvidia.FP32


@pytest.fixture
def patch(trt):
    """Undone before the fake machine is: pytest's own is older than that, and would put the fake back afterwards."""
    with pytest.MonkeyPatch.context() as made:
        yield made


@pytest.fixture(scope="module")
def built(pristine, tmp_path_factory):
    """The tiny bundle with its plans, for each library; tests get copies."""
    folders = {}
    for kind in KINDS:
        folders[kind] = shutil.copytree(pristine, tmp_path_factory.mktemp(kind) / "tiny")
        with fake_nvidia.machine(kind):
            fake_nvidia.build(Bundle.open(folders[kind]), kind)
    return folders


@pytest.fixture
def bundle(trt, kind, built, tmp_path):
    return Bundle.open(shutil.copytree(built[kind], tmp_path / "built"))


@pytest.fixture
def engine(bundle, kind):
    with open_engine(bundle, "unet", backend=kind) as opened:
        yield opened


def receipt(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_numpy_arrays_give_numpy_arrays(engine, models, kind):
    assert isinstance(engine, Engine)
    assert (engine.backend, engine.precision, engine.spec.name) == (kind, "fp32", "unet")
    for shape in ((1, 2, 2), (2, 4, 6), (1, 2, 2)):
        for seed in range(4):  # plain, recorded, launched
            feeds = models.feeds(*shape, seed=seed)
            result = engine(**feeds)
            assert list(result) == ["prediction"] and isinstance(result["prediction"], np.ndarray)
            np.testing.assert_allclose(result["prediction"], models.expected(**feeds), atol=1e-4)


def test_there_is_one_copy_there_and_one_back(engine, models):
    feeds = models.feeds()
    engine(**feeds)
    fake_cuda.current().copies.clear()
    result = engine(**feeds)["prediction"]
    assert fake_cuda.current().copies == [
        ("host-device", feeds["x"].nbytes),
        ("host-device", feeds["t"].nbytes),
        ("device-host", result.nbytes),
    ]
    assert fake_cuda.current().kind(result.ctypes.data) == "pinned"


def test_an_array_on_the_gpu_gives_arrays_on_the_gpu_and_nothing_waits(engine, models):
    feeds = models.feeds(seed=1)
    x = engine.cuda.upload(feeds["x"], engine.stream)
    outs = []
    for seed in range(4):
        step = {"x": x, "t": models.feeds(seed=seed)["t"]}
        out = engine(**step)["prediction"]
        assert type(out).__name__ == "DeviceArray" and out.arithmetic is not None
        outs.append(out)
    assert fake_cuda.current().streams[engine.stream.handle].queue
    assert all(out is outs[0] for out in outs)
    np.testing.assert_allclose(
        outs[0].numpy(engine.stream), models.expected(feeds["x"], models.feeds(seed=3)["t"]), atol=1e-4
    )


def test_pinned_memory_is_not_written_while_it_is_read(engine, models):
    """Two calls that do not wait, with different host feeds: each is computed with its own."""
    x = engine.cuda.upload(models.feeds()["x"], engine.stream)
    times = [np.array([k, k], np.float32) for k in (1, 2)]
    kept = []
    for t in times:
        out = engine(x=x, t=t)["prediction"]
        kept.append(engine.cuda.empty(out.shape, out.dtype))
        kept[-1].copy_from(out, engine.stream)
    for t, out in zip(times, kept, strict=True):
        np.testing.assert_allclose(out.numpy(engine.stream), models.expected(models.feeds()["x"], t), atol=1e-4)


def test_an_output_may_be_fed_back(models, trt, kind, tmp_path):
    """The embedder's integers, and an array on the GPU that is the engine's own output."""
    from onnx import TensorProto, helper

    from sfumato.engines.binding import Binding
    from sfumato.engines.bundle import BundleWriter
    from sfumato.engines.manifest import NetworkSpec

    ends = (Binding("x", "float32", ("batch",)), Binding("y", "float32", ("batch",)))
    spec = NetworkSpec("net", "net.onnx", (), ends[:1], ends[1:], {"batch": models.DIMENSIONS["batch"]})
    with BundleWriter(tmp_path / "b") as writer:
        models.save(
            writer.path("net.onnx"),
            [helper.make_node("Mul", ["x", "two"], ["y"])],
            [("x", TensorProto.FLOAT, ["batch"])],
            [("y", TensorProto.FLOAT, ["batch"])],
            {"two": np.array(2, np.float32)},
            external=False,
        )
        made = writer.commit(models.manifest(spec))
    fake_nvidia.build(made, kind)
    with open_engine(made, "net", backend=kind) as engine:
        value = engine(x=engine.cuda.upload(np.ones(2, np.float32), engine.stream))["y"]
        for _ in range(5):
            value = engine(x=value)["y"]
        assert value.numpy(engine.stream).tolist() == [64.0, 64.0]
        host = engine(x=np.ones(2, np.float32))["y"]
        assert engine(x=host)["y"].tolist() == [4.0, 4.0]


def test_integers_cross_the_boundary(bundle, kind):
    with open_engine(bundle, "class_embedder", backend=kind) as engine:
        context = engine(y=np.array([9, 0]))["context"]
    np.testing.assert_array_equal(context, [np.arange(72, 80), np.arange(8)])


def test_the_second_run_is_recorded_and_later_ones_are_launched(engine, models, trt):
    feeds = models.feeds()
    launches = []
    for _ in range(4):
        before = fake_cuda.current().launches
        engine(**feeds)
        launches.append(fake_cuda.current().launches - before)
    assert launches == [0, 1, 1, 1]
    (context,) = trt.contexts
    assert context.recorded == 1


def test_without_graphs_nothing_is_recorded(bundle, models, trt, kind):
    with TensorRTEngine(bundle, bundle.network("unet"), kind, cuda_graphs=False) as engine:
        for _ in range(3):
            engine(**models.feeds())
    assert fake_cuda.current().launches == 0


def test_what_cannot_be_recorded_runs_plainly(bundle, models, trt, kind, patch):
    run = type(trt.contexts[0]) if trt.contexts else None
    assert run is None
    import fake_tensorrt_runtime

    real = fake_tensorrt_runtime.IExecutionContext.execute_async_v3

    def refuse(self, stream_handle):
        if fake_cuda.current().streams[stream_handle].recorded is not None:
            return self._error("cannot be captured")
        return real(self, stream_handle)

    patch.setattr(fake_tensorrt_runtime.IExecutionContext, "execute_async_v3", refuse)
    with open_engine(bundle, "unet", backend=kind) as engine:
        for _ in range(4):
            feeds = models.feeds()
            np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
    assert fake_cuda.current().launches == 0


def test_few_sets_of_shapes_are_kept(bundle, models, trt, kind):
    with TensorRTEngine(bundle, bundle.network("unet"), kind, shapes=2) as engine:
        for height in (2, 4, 6, 4, 2):
            feeds = models.feeds(1, height, 4)
            np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
    assert len(trt.contexts) == 4  # 2, 4, 6 (2 goes), 2 again
    if kind == "tensorrt_rtx":
        assert {c.kernels.name for c in trt.contexts} == {"EAGER"}


def test_an_output_outlives_its_set_of_shapes(bundle, models, kind):
    with TensorRTEngine(bundle, bundle.network("unet"), kind, shapes=1) as engine:
        feeds = models.feeds(1, 4, 4)
        x = engine.cuda.upload(feeds["x"], engine.stream)
        kept = engine(x=x, t=feeds["t"])["prediction"]
        engine(**models.feeds(1, 2, 2))
        np.testing.assert_allclose(kept.numpy(engine.stream), models.expected(**feeds), atol=1e-4)


def test_engines_of_a_bundle_share_one_stream_and_the_largest_arena(bundle, models, kind):
    with open_engine(bundle, "unet", backend=kind) as a, open_engine(bundle, "class_embedder", backend=kind) as b:
        assert a.stream is b.stream
        shared = a._shared
        b(y=np.array([1, 2]))
        small = shared.arena_bytes
        a(**models.feeds(1, 4, 4))
        a(**models.feeds(1, 4, 4))
        middle = shared.arena_bytes
        a(**models.feeds(2, 16, 16))
        large = shared.arena_bytes
        assert 0 < small < middle < large
        assert large == max(run.need for e in (a, b) for run in e._runs.values())
        for _ in range(3):  # graphs that were recorded on the smaller arena are not used
            feeds = models.feeds(1, 4, 4)
            np.testing.assert_allclose(a(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
            np.testing.assert_array_equal(b(y=np.array([3]))["context"], [np.arange(24, 32)])
        assert shared.arena_bytes == large
        a.close()
        assert shared.arena_bytes == large and b(y=np.array([1]))["context"].shape == (1, 8)
    assert shared.arena_bytes == 0


def test_a_network_that_cannot_say_what_it_needs_is_given_the_most_of_its_profile(bundle, models, kind, patch):
    import fake_tensorrt_runtime as runtime

    real = runtime.IExecutionContext.update_device_memory_size_for_shapes
    patch.setattr(runtime.IExecutionContext, "update_device_memory_size_for_shapes", lambda self: real(self) * 0)
    with open_engine(bundle, "unet", backend=kind) as engine:
        feeds = models.feeds()
        np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
        assert engine._shared.arena_bytes == engine._engine.get_device_memory_size_for_profile_v2(0)


def test_closing_frees_everything(bundle, models, kind):
    before = fake_cuda.current().live
    engine = open_engine(bundle, "unet", backend=kind)
    feeds = models.feeds()
    for _ in range(3):
        engine(**feeds)
    out = engine(x=engine.cuda.upload(feeds["x"], engine.stream), t=feeds["t"])["prediction"]
    assert fake_cuda.current().live > before
    engine.close()
    engine.close()
    gc.collect()
    assert fake_cuda.current().live == before
    with pytest.raises(EngineError, match="was closed"):
        out.pointer  # noqa: B018
    with pytest.raises(EngineError, match="the engine was closed; open it again"):
        engine(**feeds)
    with pytest.raises(EngineError, match="the engine was closed; open it again"):
        engine.refit({})


def test_too_little_memory_is_said_with_sizes(engine, models, patch):
    engine(**models.feeds(1, 2, 2))
    real, limit = fake_cuda.current().allocate, 3000

    def allocate(size, kind):
        if kind == "device" and size > limit:
            raise fake_cuda.CUDAError("CUDA_ERROR_OUT_OF_MEMORY")
        return real(size, kind)

    patch.setattr(fake_cuda.current(), "allocate", allocate)
    with pytest.raises(EngineError, match=r"unet: needs \d+ bytes of GPU memory for its activations .*OUT_OF_MEMORY"):
        engine(**models.feeds(1, 8, 8))
    limit = 100
    with pytest.raises(EngineError, match=r"no GPU memory for 'x', float32 \(1, 4, 4, 4\) .*256 bytes"):
        engine(**models.feeds(1, 4, 4))
    patch.undo()
    feeds = models.feeds(1, 2, 2)
    np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)


def test_feeds_that_do_not_fit_are_refused(engine, models):
    feeds = models.feeds()
    with pytest.raises(BindingError, match="height is 18"):
        engine(**models.feeds(1, 18, 4))
    with pytest.raises(BindingError, match="is float64"):
        engine(x=feeds["x"].astype(np.float64), t=feeds["t"])
    with pytest.raises(BindingError, match="input 't' is missing"):
        engine(x=feeds["x"])
    x = engine.cuda.upload(feeds["x"][:1], engine.stream)
    with pytest.raises(BindingError, match="batch is 1 in 'x' but 2 in 't'"):
        engine(x=x, t=feeds["t"])


def test_shapes_outside_the_plan_name_its_range_and_the_one_to_build(trt, kind, tiny, models):
    opened = Bundle.open(tiny)
    fake_nvidia.build(opened, kind, replace(FP32, ranges={"height": (2, 4, 8)}), ["unet"])
    with open_engine(opened, "unet", backend=kind) as engine:
        feeds = models.feeds(1, 8, 4)
        np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
        with pytest.raises(
            BindingError, match=r"no profile for x \(1, 4, 16, 4\), .*it holds x \(1, 4, 2, 2\)"
        ) as caught:
            engine(**models.feeds(1, 16, 4))
    text = str(caught.value)
    assert f"sfumato build {opened.path} --network unet" in text
    assert "--range batch=1 --range height=16 --range width=4" in text


def test_of_several_profiles_the_nearest_that_holds_the_shapes_is_taken(bundle, models, trt, kind):
    import fake_tensorrt_runtime as runtime

    (path,) = find_plans(bundle, "unet")
    data = path.read_bytes()
    size = int.from_bytes(data[8:16], "little")
    header = json.loads(data[16 : 16 + size])
    (whole,) = header["profiles"]
    small = {"x": [[1, 4, 2, 2], [1, 4, 2, 2], [1, 4, 4, 4]], "t": [[1], [1], [1]]}
    large = {"x": [[1, 4, 2, 2], [2, 4, 8, 8], [4, 4, 8, 8]], "t": [[1], [2], [4]]}
    assert set(whole) == set(small)
    text = json.dumps({**header, "profiles": [large, small]}).encode()
    changed = b"".join((runtime.MAGIC, len(text).to_bytes(8, "little"), text, data[16 + size :]))
    rewrite(path, changed)
    with open_engine(bundle, "unet", backend=kind) as engine:
        for shape, profile in (((1, 2, 2), 1), ((1, 4, 4), 1), ((2, 4, 4), 0), ((4, 8, 8), 0)):
            feeds = models.feeds(*shape)
            np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
            assert trt.contexts[-1]._profile == profile
        with pytest.raises(BindingError, match=r"it holds .* or x \(1, 4, 2, 2\) to \(1, 4, 4, 4\)"):
            engine(**models.feeds(1, 16, 16))


def rewrite(path, data):
    """Another plan in place of one, with a receipt that fits."""
    import hashlib

    tree = receipt(path)
    path.write_bytes(data)
    tree |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    path.with_suffix(".json").write_text(json.dumps(tree))


def test_a_plan_of_another_version_gpu_or_bundle_is_refused_with_reason_and_command(bundle, models, kind, tmp_path):
    (path,) = find_plans(bundle, "unet")
    tree = receipt(path)
    command = f"run: sfumato build {bundle.path} --network unet --target {'rtx:sm86' if 'rtx' in kind else 'tensorrt'}"
    for change, reason in (
        ({"version": "0.9.1"}, f"was built by {kind} 0.9.1, installed is"),
        ({"sms": ["sm75"]}, "was built for sm75, this GPU is sm86"),
        ({"digest": "0" * 64}, "was built from other weights"),
        ({"builder": "another"}, "was built by another, it would be run by"),
    ):
        path.with_suffix(".json").write_text(json.dumps({**tree, "key": {**tree["key"], **change}}))
        with pytest.raises(EngineError) as caught:
            open_engine(bundle, "unet", backend=kind)
        assert reason in str(caught.value) and str(caught.value).endswith(command)
        assert path.name in str(caught.value)


def test_a_truncated_plan_and_one_that_the_library_refuses(bundle, kind):
    (path,) = find_plans(bundle, "unet")
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    with pytest.raises(EngineError, match=f"has {len(data) - 9} bytes, its receipt says {len(data)}: it was cut short"):
        open_engine(bundle, "unet", backend=kind)
    rewrite(path, b"something else")
    with pytest.raises(EngineError, match=r"does not open .*14 bytes \(Serialization assertion magicTagRead"):
        open_engine(bundle, "unet", backend=kind)
    path.unlink()
    path.with_suffix(".json").unlink()
    with pytest.raises(EngineError, match="it has none of this network; run: sfumato build"):
        open_engine(bundle, "unet", backend=kind)


def test_a_plan_that_is_not_the_manifests_is_refused(bundle, kind):
    (unet,), (embedder,) = find_plans(bundle, "unet"), find_plans(bundle, "class_embedder")
    rewrite(unet, embedder.read_bytes())
    with pytest.raises(EngineError, match="reads the inputs y from"):
        open_engine(bundle, "unet", backend=kind)


def test_an_input_that_the_library_wants_on_the_host_is_refused(bundle, kind, patch):
    import fake_tensorrt_runtime as runtime

    patch.setattr(runtime.ICudaEngine, "get_tensor_location", lambda self, name: runtime.TensorLocation.HOST)
    with pytest.raises(EngineError, match="takes input 'x' as the extents of a shape, in host memory"):
        open_engine(bundle, "unet", backend=kind)


def test_the_asked_precision_is_taken_and_half_is_preferred(bundle, kind, models):
    with pytest.raises(EngineError, match=r"computes in fp32, asked was fp16; run: .*--precision fp16"):
        open_engine(bundle, "unet", backend=kind, precision="fp16")
    fake_nvidia.build(bundle, kind, BuildOptions(precision="fp16"), ["unet"])
    with open_engine(bundle, "unet", backend=kind, precision="fp16") as engine:
        assert engine.precision == "fp16"
        feeds = models.feeds()
        for _ in range(3):
            np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=2e-2)
    with open_engine(bundle, "unet", backend=kind) as engine:  # what a build takes by itself: no tolerance for fp16
        assert engine.precision == "fp32"


def test_of_several_plans_the_one_for_the_largest_shapes_is_taken(bundle, kind, models):
    fake_nvidia.build(bundle, kind, replace(FP32, ranges={"batch": (1, 1, 4)}), ["unet"])
    fake_nvidia.build(bundle, kind, replace(FP32, ranges={"batch": (1, 1, 1)}), ["unet"])
    assert len(find_plans(bundle, "unet")) == 3
    with open_engine(bundle, "unet", backend=kind) as engine:
        assert engine(**models.feeds(4))["prediction"].shape[0] == 4


def test_weights_are_streamed_as_the_budget_says(bundle, models, trt, kind):
    spec = bundle.network("unet")
    with pytest.raises(ParameterError, match="does not stream weights; leave it out, or run: .*--weight-streaming"):
        TensorRTEngine(bundle, spec, kind, weight_budget=100)
    for path in find_plans(bundle, "unet"):
        path.unlink()
    fake_nvidia.build(bundle, kind, replace(FP32, weight_streaming=True), ["unet"])
    # TensorRT for RTX allocates while weights are streamed, so such a plan is never recorded.
    for budget, launches in ((None, 2 if kind == "tensorrt" else 0), (10, 0)):
        fake_cuda.current().launches = 0
        with TensorRTEngine(bundle, spec, kind, weight_budget=budget) as engine:
            for _ in range(3):
                feeds = models.feeds()
                np.testing.assert_allclose(engine(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
            assert (engine._engine.weight_streaming_budget_v2 == 10) is (budget == 10)
        assert fake_cuda.current().launches == launches


def test_a_failing_run_says_what_the_library_said(engine, models, patch):
    import fake_tensorrt_runtime as runtime

    patch.setattr(runtime.IExecutionContext, "execute_async_v3", lambda self, handle: self._error("broken"))
    with pytest.raises(EngineError, match=r"unet: TensorRT.* failed while running \(IExecutionContext: broken\)"):
        engine(**models.feeds())
    patch.setattr(runtime.IExecutionContext, "execute_async_v3", lambda self, handle: 1 / 0)
    with pytest.raises(EngineError, match=r"failed while running \(division by zero\)"):
        engine(**models.feeds())


def test_auto_takes_a_plan_for_this_gpu_and_else_the_processor(bundle, models, kind, patch, tmp_path):
    for path in find_plans(bundle, "class_embedder"):
        path.unlink()
    with open_engine(bundle, "unet") as engine, open_engine(bundle, "class_embedder") as other:
        assert engine.backend == kind and other.backend in ("openvino", "onnxruntime")
    with open_engine(bundle, "unet", precision="bf16") as engine:
        assert engine.backend == "openvino"
    patch.setattr(backends, "devices", list)
    with open_engine(bundle, "unet", threads=1) as engine:
        assert engine.backend in ("openvino", "onnxruntime")
    patch.setattr(backends, "devices", lambda: [CudaDevice("Other", "sm120")])
    with open_engine(bundle, "unet", threads=1) as engine:
        assert engine.backend in ("openvino", "onnxruntime")


def test_a_machine_without_other_libraries_runs_plans(bundle, kind, patch):
    patch.setattr(backends, "_CPU", {})
    assert backends.check_options("auto", None, None) == kind


def test_a_library_that_cannot_work_here_says_why(bundle, kind, patch):
    found = backends.environment()
    patch.setattr(backends, "environment", lambda: replace(found, gpus=()))
    with pytest.raises(EngineError, match=f"backend '{kind}' cannot work here: the driver names no GPU"):
        open_engine(bundle, "unet", backend=kind)
    other = next(k for k in KINDS if k != kind)
    with pytest.raises(MissingDependency, match=rf"engine needs {other}, which is not installed"):
        open_engine(bundle, "unet", backend=other)


def test_another_bundle_has_its_own_stream_and_arena(bundle, kind, tmp_path):
    copy = Bundle.open(shutil.copytree(bundle.path, tmp_path / "copy"))
    with open_engine(bundle, "unet", backend=kind) as a, open_engine(copy, "unet", backend=kind) as b:
        assert a.stream is not b.stream
    gc.collect()
    assert not [s for s in tensorrt_shared._shared.values() if s.arena_bytes]
