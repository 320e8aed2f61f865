"""Plans on a real GPU: built, run, compared with ONNX Runtime, recorded as graphs, refitted there and back."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace

import numpy as np
import pytest

from sfumato.engines.build import build_plan
from sfumato.engines.build_options import BuildOptions
from sfumato.engines.build_target import parse_target
from sfumato.engines.builder_library import LIBRARIES
from sfumato.engines.bundle import Bundle
from sfumato.engines.engine import open_engine
from sfumato.engines.nvidia import devices
from sfumato.engines.refit import stored_weights
from sfumato.engines.tensorrt import TensorRTEngine
from sfumato.errors import BindingError

pytestmark = pytest.mark.gpu

GPUS = devices()
KINDS = [kind for kind in LIBRARIES if importlib.util.find_spec(kind) is not None]


def usable(kind: str) -> str:
    """Why a library cannot run here; "" if it can."""
    if not GPUS:
        return "the driver names no GPU"
    known = LIBRARIES[kind].capabilities  # type: ignore[index]
    if known and GPUS[0].sm not in known:
        return f"{kind} does not know {GPUS[0].sm}"
    return "" if importlib.util.find_spec("cuda") is not None else "needs cuda-core"


@pytest.fixture(params=[*KINDS, *([] if KINDS else ["none"])])
def kind(request):
    if request.param == "none":
        pytest.skip("neither tensorrt nor tensorrt_rtx is installed")
    if reason := usable(request.param):
        pytest.skip(reason)
    return request.param


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Timings are kept beside the rest of the run: measuring them anew for every test takes minutes."""
    monkeypatch.setenv("SFUMATO_CACHE", os.environ.get("SFUMATO_CACHE", str(tmp_path)))


def build(bundle, network, kind, **options):
    target = parse_target(f"rtx:{GPUS[0].sm}" if kind == "tensorrt_rtx" else "tensorrt")
    return build_plan(bundle, network, target, BuildOptions(**options))


@pytest.fixture
def ldm(tiny_ldm, tmp_path):
    import shutil

    return Bundle.open(shutil.copytree(tiny_ldm, tmp_path / "ldm"))


def feeds_of(bundle, network):
    stored = bundle.tensors(f"{network}.reference.safetensors")
    return {name.removeprefix("in/"): array for name, array in stored.items() if name.startswith("in/")}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 5e-3), ("fp16", 2e-2)])
def test_every_network_agrees_with_onnxruntime(ldm, kind, precision, tolerance):
    """fp32 allows for TF32, which the libraries may compute products in."""
    for network in ldm.manifest.networks:
        plan = build(ldm, network, kind, precision=precision)
        assert plan.built["proof"] in ("engine", "layers")
        feeds = feeds_of(ldm, network)
        with (
            open_engine(ldm, network, backend="onnxruntime") as want,
            open_engine(ldm, network, backend=kind, precision=precision) as engine,
        ):
            expected = {name: array.copy() for name, array in want(**feeds).items()}
            for _ in range(4):  # plain, recorded, launched
                for name, array in engine(**feeds).items():
                    error = np.linalg.norm(array - expected[name]) / np.linalg.norm(expected[name])
                    assert error < tolerance, (network, name, error)


def test_a_recorded_run_gives_the_bits_of_a_plain_one(ldm, kind):
    build(ldm, "unet", kind, precision="fp16")
    feeds, spec = feeds_of(ldm, "unet"), ldm.network("unet")
    with TensorRTEngine(ldm, spec, kind, cuda_graphs=False) as plain, TensorRTEngine(ldm, spec, kind) as graphs:
        first = plain(**feeds)["prediction"].copy()
        for _ in range(4):
            np.testing.assert_array_equal(graphs(**feeds)["prediction"], first)
        (run,) = graphs._runs.values()
        assert run._graph is not None, "the run was not recorded"


def test_arrays_on_the_gpu_are_fed_and_given(ldm, kind):
    build(ldm, "unet", kind)
    feeds = feeds_of(ldm, "unet")
    with open_engine(ldm, "unet", backend=kind) as engine:
        want = engine(**feeds)["prediction"].copy()
        for _ in range(4):
            there = {name: engine.cuda.upload(array, engine.stream) for name, array in feeds.items()}
            out = engine(**there)["prediction"]
        np.testing.assert_array_equal(out.numpy(engine.stream), want)


def test_engines_share_an_arena_and_shapes_change(ldm, kind):
    for network in ("unet", "vae_decoder"):
        build(ldm, network, kind)
    rng = np.random.default_rng(0)
    with (
        open_engine(ldm, "unet", backend=kind) as unet,
        open_engine(ldm, "vae_decoder", backend=kind) as decoder,
        open_engine(ldm, "vae_decoder", backend="onnxruntime") as reference,
    ):
        feeds = feeds_of(ldm, "unet")
        want = unet(**feeds)["prediction"].copy()
        for side in (4, 8, 16, 4, 16):
            z = rng.standard_normal((1, 4, side, side)).astype(np.float32)
            image, expected = decoder(z=z)["image"], reference(z=z)["image"]
            assert np.linalg.norm(image - expected) / np.linalg.norm(expected) < 2e-2
            np.testing.assert_array_equal(unet(**feeds)["prediction"], want)


def test_shapes_outside_the_plan_are_refused(ldm, kind):
    build(ldm, "vae_decoder", kind, ranges={"height": (4, 8, 8)})
    with open_engine(ldm, "vae_decoder", backend=kind) as engine:
        with pytest.raises(BindingError, match="no profile"):
            engine(z=np.zeros((1, 4, 16, 8), np.float32))
        engine(z=np.zeros((1, 4, 8, 8), np.float32))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_refitted_weights_go_there_and_back_bit_for_bit(ldm, kind, precision):
    build(ldm, "unet", kind, precision=precision, refit=True)
    weights = stored_weights(ldm, "unet")
    feeds = feeds_of(ldm, "unet")
    with TensorRTEngine(ldm, ldm.network("unet"), kind, precision=precision, refit=True) as engine:
        before = [engine(**feeds)["prediction"].copy() for _ in range(3)]
        assert "kernel" in engine.refittable
        engine.refit({"kernel": weights["kernel"] * 2})
        changed = [engine(**feeds)["prediction"].copy() for _ in range(3)]
        engine.refit({"kernel": weights["kernel"]})
        after = [engine(**feeds)["prediction"].copy() for _ in range(3)]
    conv = before[0] - _rest(feeds)
    np.testing.assert_allclose(changed[0] - _rest(feeds), 2 * conv, atol=5e-2)
    for array in (*before, *after):
        np.testing.assert_array_equal(array, before[0])


def _rest(feeds):
    """What the tiny UNet adds to its convolution: the mean of the context and the time."""
    return (feeds["context"].mean((1, 2)) + 1e-4 * feeds["t"])[:, None, None, None]


def test_a_gradient_agrees_with_the_stored_one(tiny_ldm, tmp_path, kind):
    import tiny_p2p

    bundle = tiny_p2p.write(tiny_ldm, tmp_path / "b")
    ranges = {"batch": (1, 2, 2), "height": (8, 8, 8), "width": (8, 8, 8), "pixels_1": (64, 64, 64)}
    build(bundle, "unet_gradient", kind, precision="fp32", ranges=ranges)
    stored = bundle.tensors("unet_gradient.reference.safetensors")
    with open_engine(bundle, "unet_gradient", backend=kind) as engine:
        result = engine(**feeds_of(bundle, "unet_gradient"))
    for name in ("loss", "gradient"):
        error = np.linalg.norm(result[name] - stored[f"out/{name}"]) / np.linalg.norm(stored[f"out/{name}"])
        assert error < 5e-3, (name, error)


def test_streamed_weights_give_the_same(ldm, kind):
    build(ldm, "unet", kind, precision="fp32", weight_streaming=True)
    feeds, spec = feeds_of(ldm, "unet"), ldm.network("unet")
    results = []
    for budget in (None, 0):
        with TensorRTEngine(ldm, spec, kind, weight_budget=budget) as engine:
            results.append(engine(**feeds)["prediction"].copy())
    np.testing.assert_allclose(results[0], results[1], rtol=1e-3, atol=1e-3)


def test_a_plan_for_another_gpu_is_refused_before_it_is_opened(ldm, kind):
    from sfumato.engines.plan import PlanKey, write_plan
    from sfumato.errors import EngineError

    plan = build(ldm, "unet", kind)
    spec = ldm.network("unet")
    key = PlanKey("unet", plan.key["digest"], kind, plan.key["version"], ("sm75",), "", "fp16", spec.profile, {})
    other = replace(key, sms=("sm70",))
    data = plan.path.read_bytes()
    plan.path.unlink()
    write_plan(plan.path.parent, other, data, {})
    with pytest.raises(EngineError, match="was built for sm70, this GPU is"):
        open_engine(ldm, "unet", backend=kind)
