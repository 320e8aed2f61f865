"""Refit on the fake: other weights in a loaded plan, and back, bit for bit."""

from __future__ import annotations

import re
from dataclasses import replace

import fake_nvidia
import numpy as np
import pytest

from sfumato.engines.build_options import BuildOptions
from sfumato.engines.bundle import Bundle
from sfumato.engines.plan import find_plans, read_plan
from sfumato.engines.refit import stored_weights
from sfumato.engines.tensorrt import TensorRTEngine
from sfumato.errors import EngineError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(params=["fp32", "fp16"])
def engine(request, trt, kind, tiny):
    bundle = Bundle.open(tiny)
    fake_nvidia.build(bundle, kind, BuildOptions(precision=request.param, refit=True), ["unet"])
    with TensorRTEngine(bundle, bundle.network("unet"), kind, precision=request.param, refit=True) as opened:
        yield opened


@pytest.fixture
def other(models, tmp_path):
    return models.write_tiny(tmp_path / "other", weight=models.WEIGHT[::-1] * 0.5)


def test_weights_go_there_and_back_bit_for_bit(engine, models, other, tiny):
    """With a CUDA graph recorded on the old ones, which must not be launched again."""
    mine, its = stored_weights(Bundle.open(tiny), "unet"), stored_weights(other, "unet")
    assert {name for name, (dtype, _) in engine.refittable.items() if dtype.startswith("float")} == {"weight", "bias"}
    feeds = models.feeds()
    tolerance = {"atol": 1e-4} if engine.precision == "fp32" else {"atol": 2e-2}
    before = [engine(**feeds)["prediction"].copy() for _ in range(3)]
    for weights, want in ((its, models.WEIGHT[::-1] * 0.5), (mine, models.WEIGHT)):
        engine.refit({name: weights[name] for name in ("weight", "bias")})
        for _ in range(3):
            result = engine(**feeds)["prediction"]
            np.testing.assert_allclose(result, models.expected(**feeds, weight=want), **tolerance)
    for first in before:
        np.testing.assert_array_equal(first, result)


def test_what_is_not_given_keeps_its_value(engine, models):
    bias = np.array([1, 2, 3], np.float32)
    engine.refit({"bias": bias})
    feeds = models.feeds()
    want = models.expected(**feeds) + (bias - models.BIAS)[:, None, None]
    np.testing.assert_allclose(engine(**feeds)["prediction"], want, atol=2e-2)


def test_weights_that_do_not_fit_are_refused_and_the_plan_is_as_it_was(engine, models, trt):
    weight, feeds = models.WEIGHT.astype(np.float16), models.feeds()
    before = engine(**feeds)["prediction"].copy()
    engine_name = "TensorRT for RTX" if trt.rtx else "TensorRT"
    assert engine_name
    for weights, reason in (
        ({"wieght": weight}, "has no weight 'wieght'; did you mean 'weight'?"),
        ({"weight": weight[:2]}, "weight 'weight' is float16 (2, 4, 3, 3), the graph has float16 (3, 4, 3, 3)"),
        ({"weight": weight.astype(np.float32)}, "is float32 (3, 4, 3, 3), the graph has float16"),
    ):
        with pytest.raises(EngineError, match=re.escape(reason)):
            engine.refit(weights)
    trt.fixed = {name for name, origin in engine._origins.items() if origin[0] == "bias"}
    with pytest.raises(EngineError, match="weight 'bias' cannot be replaced in this plan"):
        engine.refit({"bias": models.BIAS})
    trt.fixed = set()
    trt.combined = [set(engine._origins) - {"column"}]
    with pytest.raises(EngineError, match="has combined what was given with 'bias', which was not; give these weights"):
        engine.refit({"weight": weight * 2})
    np.testing.assert_array_equal(engine(**feeds)["prediction"], before)


def test_a_weight_beyond_the_plans_type_is_refused(trt, kind, tiny, models):
    bundle = Bundle.open(tiny)
    fake_nvidia.build(bundle, kind, BuildOptions(precision="fp16", refit=True), ["unet"])
    with TensorRTEngine(bundle, bundle.network("unet"), kind, refit=True) as engine:
        halves = [o[0] for name, o in engine._origins.items() if name.endswith("/half")]
        if "bias" in halves:
            with pytest.raises(EngineError, match="does not fit float16, in which the plan holds it"):
                engine.refit({"bias": np.array([0, 1e9, 0], np.float32)})


def test_a_refit_that_fails_halfway_ends_the_engine(engine, models, trt):
    trt.refit_stops_after = 1
    weights = {"weight": models.WEIGHT.astype(np.float16) * 2, "bias": models.BIAS * 2}
    message = r"refitting failed halfway \(out of memory while refitting\), .* close it and open it again"
    with pytest.raises(EngineError, match=message):
        engine.refit(weights)
    trt.refit_stops_after = None
    for again in (lambda: engine(**models.feeds()), lambda: engine.refit(weights)):
        with pytest.raises(EngineError, match=message):
            again()
    engine.close()


def test_a_plan_that_was_not_built_for_it_is_not_refitted(trt, kind, tiny):
    bundle = Bundle.open(tiny)
    spec = bundle.network("unet")
    fake_nvidia.build(bundle, kind, networks=["unet"])
    with TensorRTEngine(bundle, spec, kind) as engine:
        assert engine.refittable == {}
        with pytest.raises(EngineError, match="was not built to be refitted; run: sfumato build .* --refit"):
            engine.refit({})
    with pytest.raises(EngineError, match=r"was not built to be refitted; run: sfumato build .* --refit"):
        TensorRTEngine(bundle, spec, kind, refit=True)
    fake_nvidia.build(bundle, kind, replace(fake_nvidia.FP32, refit=True), ["unet"])
    assert len(find_plans(bundle, "unet")) == 2
    for refit in (False, True):
        with TensorRTEngine(bundle, spec, kind, refit=refit) as engine:
            assert bool(engine.refittable) is refit


def test_the_receipt_says_where_weights_come_from(trt, kind, tiny):
    bundle = Bundle.open(tiny)
    fake_nvidia.build(bundle, kind, BuildOptions(precision="fp16", refit=True), ["unet"])
    (path,) = find_plans(bundle, "unet")
    table = read_plan(path).built["weights"]
    assert table["weight"] == ["weight", "float16", [3, 4, 3, 3]]
    assert {row[0] for row in table.values()} == {"weight", "bias", "column"}
    assert "REFIT" in [flag.name for flag in trt.configs[0].flags]
