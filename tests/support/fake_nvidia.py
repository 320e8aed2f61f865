"""A machine with a GPU and TensorRT, all of it fake, for tests of what runs there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fake_cuda
import fake_tensorrt
import pytest

from sfumato.engines import backends, builder_library, plan_proof
from sfumato.engines import build as build_module
from sfumato.engines.build import build_plan
from sfumato.engines.build_options import BuildOptions
from sfumato.engines.build_target import BuildTarget
from sfumato.engines.bundle import Bundle
from sfumato.engines.doctor import Environment
from sfumato.engines.nvidia import CudaDevice, NvidiaFacts
from sfumato.engines.target import CpuFacts

GPU = CudaDevice("Fake", "sm86")
VERSIONS = {"tensorrt": "10.3.0", "tensorrt_rtx": "1.7.1.116"}
PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu13"}
FP32 = BuildOptions(precision="fp32")


@contextmanager
def machine(kind: Any = "tensorrt", **options: Any) -> Iterator[fake_tensorrt.Fake]:
    """While this lasts, the fake module is imported and the driver names the fake GPU."""
    module = fake_tensorrt.Fake(VERSIONS[kind], rtx=kind == "tensorrt_rtx", **options)
    packages = {PACKAGES[kind]: VERSIONS[kind], "cuda-core": "1.2.2", "onnx": "1.23.2"}
    facts = NvidiaFacts("580.95.05", "libcuda.so.1", libraries=("cudart", "cudnn"))
    found = Environment((3, 11), "Linux", CpuFacts("A processor", "x86_64", 2, ()), packages, facts, (GPU,))
    with pytest.MonkeyPatch.context() as patch:
        fake_cuda.install(patch)
        patch.setitem(sys.modules, kind, module)
        patch.setitem(sys.modules, "tensorrt" if kind == "tensorrt_rtx" else "tensorrt_rtx", None)
        patch.setattr(backends, "devices", lambda: [GPU])
        patch.setattr(backends, "environment", lambda: found)
        for module_of in (build_module, plan_proof):
            patch.setattr(module_of, "devices", lambda: [GPU])
        builder_library.load_library.cache_clear()
        try:
            yield module
        finally:
            builder_library.load_library.cache_clear()


def build(bundle: Bundle, kind: Any, options: BuildOptions = FP32, networks: Any = None) -> None:
    """Plans of a bundle for the fake GPU."""
    target = BuildTarget(kind, (GPU.sm,), GPU.name if kind == "tensorrt" else "")
    for name in networks or bundle.manifest.networks:
        build_plan(bundle, name, target, options)
