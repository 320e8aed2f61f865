"""What TensorRT does otherwise than TensorRT for RTX, on a fake of its module: it cannot be installed without a GPU."""

from __future__ import annotations

import sys

import fake_tensorrt as fake
import pytest

from sfumato.engines import builder_library, plan_proof, timing
from sfumato.engines.build import build_plan
from sfumato.engines.build_options import BuildOptions
from sfumato.engines.build_target import parse_target
from sfumato.engines.bundle import Bundle
from sfumato.engines.nvidia import CudaDevice
from sfumato.engines.plan_proof import float_products
from sfumato.errors import EngineError, MissingDependency

pytest.importorskip("onnx")
HALF = BuildOptions(precision="fp16")
GPU = CudaDevice("Orin", "sm87")


@pytest.fixture
def install(monkeypatch):
    """Makes a fake importable as ``tensorrt``."""

    def install(version: str = "10.3.0", **options: str) -> fake.Fake:
        module = fake.Fake(version, **options)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        builder_library.load_library.cache_clear()
        return module

    yield install
    builder_library.load_library.cache_clear()


@pytest.fixture
def target():
    return parse_target("tensorrt", [GPU])


def test_a_network_is_strongly_typed_and_built_for_the_gpu_at_hand(install, tiny, target):
    module = install()
    plan = build_plan(Bundle.open(tiny), "unet", target, HALF)
    assert plan.path.parent.name == "sm87-trt10.3"
    assert (plan.key["gpu"], plan.key["sms"]) == ("Orin", ["sm87"])
    assert module.networks[0].creation_flags == 1 << fake.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    (profile,) = module.configs[0].profiles
    assert profile.shapes["x"] == ((1, 4, 2, 2), (1, 4, 4, 4), (2, 4, 16, 16))


def test_options_reach_the_builder(install, tiny, target):
    module = install("11.4.0")
    options = BuildOptions("fp16", {}, 1 << 30, True, True, "ampere_plus", 5)
    plan = build_plan(Bundle.open(tiny), "unet", target, options)
    (config,) = module.configs
    assert config.flags == [fake.BuilderFlag.WEIGHT_STREAMING, fake.BuilderFlag.VERSION_COMPATIBLE]
    assert config.pools == {fake.MemoryPoolType.WORKSPACE: 1 << 30}
    assert config.hardware_compatibility_level is fake.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.builder_optimization_level == 5
    assert plan.path.parent.name == "sm87-trt11.4"


def test_timings_are_kept_for_the_next_build(install, tiny, target, cache):
    module = install()
    bundle = Bundle.open(tiny)
    build_plan(bundle, "unet", target, HALF)
    build_plan(bundle, "unet", target, HALF, again=True)
    (path,) = (cache / "timing").glob("tensorrt10.3.0-*.cache")
    assert module.configs[1].cache is not None
    assert path.read_bytes().startswith(b"device-01")


def test_a_timing_cache_of_another_device_is_not_taken(install, tiny, target, cache):
    module = install()
    path = timing.TimingCache(builder_library.load_library("tensorrt"), target).path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"device-1" + b"foreign")
    build_plan(Bundle.open(tiny), "unet", target, HALF)
    assert module.configs[0].refused == 1
    assert module.configs[0].cache is not None and module.configs[0].cache.device == b"device-0"


def test_a_plan_that_is_secretly_fp32_is_refused(install, tiny, target, monkeypatch):
    """The network says half, the inspector of the built plan says float."""
    monkeypatch.setattr(plan_proof, "devices", lambda: [GPU])
    install(plan="FP32")
    bundle = Bundle.open(tiny)
    with pytest.raises(EngineError, match="fp16 was asked, but every product of the plan computes in float32"):
        build_plan(bundle, "unet", target, HALF)
    assert not list((bundle.path / "plans").glob("*/*"))
    install(plan="Half")
    assert build_plan(bundle, "unet", target, HALF).built["proof"] == "layers"


def test_a_network_that_is_secretly_fp32_is_refused(install, tiny, target):
    install(network="FLOAT")
    with pytest.raises(EngineError, match="1 of 1 products compute in float32"):
        build_plan(Bundle.open(tiny), "unet", target, HALF)


@pytest.mark.parametrize("version", ["10.2.0", "8.6.1", "12.0.0"])
def test_a_version_that_was_never_tried_is_refused(install, tiny, target, version):
    install(version)
    with pytest.raises(EngineError, match=rf"TensorRT {version} is installed, sfumato builds with 10.3 to 11"):
        build_plan(Bundle.open(tiny), "unet", target, HALF)


def test_what_the_builder_said_is_told(install, tiny, target):
    install(says="Requested amount of GPU memory could not be allocated")
    with pytest.raises(EngineError, match="cannot build it .*could not be allocated"):
        build_plan(Bundle.open(tiny), "unet", target, HALF)


def test_a_missing_builder_is_said(tiny, target, monkeypatch):
    builder_library.load_library.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency, match=r"pip install 'sfumato\[tensorrt\]'"):
        build_plan(Bundle.open(tiny), "unet", target, HALF)


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '{"Layers": ["conv"]}'])
def test_an_inspector_that_says_nothing_proves_nothing(text):
    assert float_products(text) == ([], [])
