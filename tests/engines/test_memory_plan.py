"""Predicted memory against what was measured in this run: OpenVINO in float32, and builds of TensorRT for RTX."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.engines.build import build_plan
from sfumato.engines.build_options import BuildOptions
from sfumato.engines.build_target import parse_target
from sfumato.engines.bundle import Bundle
from sfumato.engines.memory_plan import MemoryPlan, fits, plan_memory, target_kind
from sfumato.errors import ParameterError

pytest.importorskip("onnx")
EMOJI = Path(__file__).parents[2] / "bundles" / "emoji-ldm"
WITHIN = 0.25

MEASURE = """
import json, sys
import numpy as np
import openvino
from sfumato.engines.binding import resolve
from sfumato.engines.bundle import Bundle
from sfumato.engines.engine import open_engine
from sfumato.engines.memory import peak_memory, reset_peak, trim
bundle, name, symbols = Bundle.open(sys.argv[1], verify=False), sys.argv[2], json.loads(sys.argv[3])
feeds = {b.name: np.ones(resolve(b, symbols), b.dtype) for b in bundle.network(name).inputs}
trim(); reset_peak()
before = peak_memory()
with open_engine(bundle, name, backend="openvino", precision="fp32", threads=1) as engine:
    engine(**feeds)
    engine(**feeds)
    print(peak_memory() - before)
"""


def exact(**extents: int) -> BuildOptions:
    return BuildOptions(ranges={name: (extent, extent, extent) for name, extent in extents.items()})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(
    ("network", "extents"),
    [
        ("unet", {"batch": 2, "height": 32, "width": 32, "tokens": 32}),
        ("vae_decoder", {"batch": 2, "height": 16, "width": 16}),
        ("text_encoder", {"batch": 2, "tokens": 32}),
    ],
)
def test_a_run_on_openvino_takes_what_was_predicted(network, extents):
    """Without the cache: to keep a compiled network takes its size once or twice more, the first time."""
    pytest.importorskip("openvino")
    if not EMOJI.is_dir():
        pytest.skip("bundles/emoji-ldm is not in this checkout")
    predicted = plan_memory(Bundle.open(EMOJI, verify=False), "cpu", exact(**extents), [network]).run
    command = [sys.executable, "-c", MEASURE, str(EMOJI), network, json.dumps(extents)]
    measured = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert abs(predicted - measured) <= WITHIN * measured, (predicted, measured)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT for RTX")
@pytest.mark.parametrize("network", ["vae_encoder", "unet_gradient"])
def test_a_build_takes_what_was_predicted(tmp_path, network):
    """In a process of its own, whose memory nothing else has filled."""
    if not EMOJI.is_dir():
        pytest.skip("bundles/emoji-ldm is not in this checkout")
    command = [sys.executable, "-m", "sfumato", "build", str(_copy(tmp_path)), "--target", "rtx:sm86+sm89", "--json"]
    command += ["--network", network]
    tree = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    measured = tree["plans"][0]["built"]["peak_bytes"]
    predicted = plan_memory(Bundle.open(EMOJI, verify=False), "rtx", networks=[network]).build
    assert abs(predicted - measured) <= WITHIN * measured, (predicted, measured)


def _copy(tmp_path: Path) -> Path:
    """The bundle without a `plans/` of the checkout's."""
    import shutil

    return Path(shutil.copytree(EMOJI, tmp_path / "emoji", ignore=shutil.ignore_patterns("plans")))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT for RTX")
def test_the_plan_holds_the_weights_that_were_counted(tiny):
    """A plan is not smaller than its weights in half precision."""
    bundle = Bundle.open(tiny)
    options = BuildOptions(precision="fp16")
    plan = build_plan(bundle, "unet", parse_target("rtx:sm89"), options)
    assert plan.bytes >= plan_memory(bundle, "rtx", options, ["unet"]).networks[0].weights


def test_networks_run_one_after_another(tiny):
    bundle = Bundle.open(tiny)
    both, one = plan_memory(bundle, "rtx"), plan_memory(bundle, "rtx", networks=["unet"])
    other = plan_memory(bundle, "rtx", networks=["class_embedder"])
    assert both.build == max(one.build, other.build)
    context = one.run - one.networks[0].weights - one.networks[0].activations
    weights, activations = ([getattr(n, key) for n in both.networks] for key in ("weights", "activations"))
    assert both.run == sum(weights) + max(activations) + context


def test_half_precision_halves_and_larger_shapes_grow(tiny):
    bundle = Bundle.open(tiny)
    half, full = (plan_memory(bundle, "rtx", BuildOptions(precision=p), ["unet"]).networks[0] for p in ("fp16", "fp32"))
    assert (2 * half.weights, 2 * half.activations) == pytest.approx((full.weights, full.activations), rel=0.1)
    small = plan_memory(bundle, "rtx", exact(height=2, width=2, batch=1), ["unet"]).networks[0]
    assert small.activations < plan_memory(bundle, "rtx", networks=["unet"]).networks[0].activations


def test_a_jetson_shares_its_memory_while_building(tiny):
    bundle = Bundle.open(tiny)
    assert plan_memory(bundle, "jetson").build > plan_memory(bundle, "rtx").build


def test_what_fits():
    assert fits(MemoryPlan("jetson", (), 6_000_000_000, 7_000_000_000), 8) == (True, False)
    assert fits(MemoryPlan("jetson", (), 6_000_000_000, 7_000_000_000), 16) == (True, True)


def test_targets():
    for text, kind in {"cpu": "cpu", "rtx": "rtx", "rtx:sm86+sm89": "rtx", "sm87": "jetson", "SM89": "rtx"}.items():
        assert target_kind(text) == kind
    with pytest.raises(ParameterError, match="write cpu, rtx:sm89, or sm87"):
        target_kind("gpu")
