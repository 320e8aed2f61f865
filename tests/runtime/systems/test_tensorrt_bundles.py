"""Whole bundles on the fake TensorRT: every network from a plan, the result that of the processor."""

from __future__ import annotations

import shutil

import fake_nvidia
import numpy as np
import pytest

import sfumato
from sfumato.engines.build_options import BuildOptions
from sfumato.engines.bundle import Bundle
from sfumato.engines.engine import open_engine
from sfumato.runtime.gradient import EngineGradient

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt_rtx"])
def test_a_picture_is_the_same_from_plans(tiny_ldm, tmp_path, kind):
    folder = shutil.copytree(tiny_ldm, tmp_path / "b")
    with sfumato.load(folder, backend="onnxruntime") as system:
        want = system.generate("a red apple", seed=3)[0].image
    with fake_nvidia.machine(kind):
        fake_nvidia.build(Bundle.open(folder), kind)
        for backend in (kind, "auto"):
            with sfumato.load(folder, backend=backend) as system:
                first = system.generate("a red apple", seed=3)[0].image
                again = system.generate("a red apple", seed=3)[0].image
            np.testing.assert_allclose(first.astype(int), want.astype(int), atol=1)
            np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt_rtx"])
def test_a_gradient_is_the_same_from_a_plan(tiny_ldm, tmp_path, kind):
    import tiny_p2p

    bundle = tiny_p2p.write(tiny_ldm, tmp_path / "b")
    stored = bundle.tensors("unet_gradient.reference.safetensors")
    feeds = {name.removeprefix("in/"): array for name, array in stored.items() if name.startswith("in/")}
    x = feeds.pop("x")
    with fake_nvidia.machine(kind):
        ranges = {"batch": (1, 2, 2), "height": (4, 8, 8), "width": (4, 8, 8), "pixels_1": (64, 64, 64)}
        fake_nvidia.build(bundle, kind, BuildOptions("fp32", ranges), ["unet_gradient"])
        with open_engine(bundle, "unet_gradient", backend=kind) as engine:
            gradient = EngineGradient(engine)
            for _ in range(3):
                loss, direction = gradient(x, **feeds)
                np.testing.assert_allclose(loss, stored["out/loss"][0], rtol=1e-4)
                np.testing.assert_allclose(direction, stored["out/gradient"], atol=1e-5)
                assert np.abs(direction).max() > 1e-3
