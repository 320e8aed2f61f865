"""The GPU check: what stops it, a dry run of every part on CPU engines, and its comparisons on fakes of a GPU."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import engine_models
import pytest

from sfumato.engines.doctor import Environment
from sfumato.engines.nvidia import CudaDevice, NvidiaFacts
from sfumato.engines.target import CpuFacts
from sfumato.errors import EngineError

real = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("onnx")

CPU = CpuFacts("m", "x86_64", 2, ())
BARE = Environment((3, 11), "Linux", CPU)
GPU = replace(
    BARE, nvidia=NvidiaFacts(driver="580.95", libcuda="libcuda.so.1"), gpus=(CudaDevice("NVIDIA RTX 4090", "sm89"),)
)


@pytest.fixture
def bundle(tmp_path):
    return engine_models.write_tiny(tmp_path / "tiny")


@pytest.fixture
def fake_gpu(monkeypatch):
    import fake_cuda
    from fake_onnxruntime import FakeOnnxRuntime

    fake_cuda.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOnnxRuntime(real))
    return sys.modules["onnxruntime"]


def test_without_a_gpu_it_says_in_one_line_what_is_missing(module, monkeypatch, capsys, tmp_path):
    check = module("gpu_check")
    monkeypatch.setattr(check, "environment", lambda: BARE)
    assert check.main(["--out", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert out == "gpu-check cannot run here: no NVIDIA driver: libcuda is not found\n"
    assert not list(tmp_path.iterdir())


def test_each_missing_piece_is_named(module, monkeypatch):
    engines = module("gpu_engines")
    assert "driver 580.95 names no GPU" in engines.missing(replace(GPU, gpus=()))
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None if name == "cuda" else object())
    assert "cuda-core is not installed" in engines.missing(GPU)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(engines, "available_backends", lambda: dict.fromkeys(engines.GPU_BACKENDS, "too old"))
    assert "no backend for this GPU works: onnxruntime_cuda: too old" in engines.missing(GPU)
    monkeypatch.setattr(engines, "available_backends", lambda: dict.fromkeys(engines.GPU_BACKENDS))
    assert engines.missing(GPU) == ""


def test_a_dry_run_walks_every_comparison(module, bundle, tmp_path, capsys):
    parts = ["plans", "parity", "polygraphy", "latency"]
    given = ["--dry-run", "--bundles", str(bundle.path), "--rounds", "2", "--out", str(tmp_path / "out")]
    assert module("gpu_check").main([*given, "--stand-in", "openvino", "--parts", *parts]) == 0
    said = capsys.readouterr().out
    assert "would run tiny/unet on onnxruntime_cuda fp32, CUDA graph" in said
    assert "nothing here ran on a GPU" in said
    data = json.loads((tmp_path / "out" / "gpu-dry-run.json").read_text())
    assert data["dry_run"] is True
    assert list(data["parts"]) == parts
    assert {row["status"] for row in data["parts"]["parity"]} == {"passed"}
    assert {row["state"] for row in data["parts"]["plans"]} == {"would be built"}
    assert all(row["fastest_ms"] > 0 and row["n"] == 2 for row in data["parts"]["latency"])
    if module("gpu_parity").has_polygraphy():
        assert {row["status"] for row in data["parts"]["polygraphy"]} == {"passed"}
    assert (tmp_path / "out" / "gpu-dry-run.md").read_text() in said + "\n"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch.compile's, of diffusers' own code
def test_a_dry_run_reaches_the_last_line(module, bundle, tmp_path, capsys):
    """With the export of the tiny Stable Diffusion, torch beside the engine, and the collection of ``tests/gpu``."""
    pytest.importorskip("diffusers")
    check = module("gpu_check")
    given = ["--dry-run", "--bundles", str(bundle.path), "--rounds", "1", "--out", str(tmp_path / "out")]
    assert check.main([*given, "--parts", "unet", "tests"]) == 0
    rows = json.loads((tmp_path / "out" / "gpu-dry-run.json").read_text())["parts"]
    assert {"openvino fp32", "torch eager float32", "torch compile bfloat16"} <= {r["variant"] for r in rows["unet"]}
    assert rows["tests"][0]["status"] == "collected"


def test_parity_runs_with_numpy_and_device_arrays_with_and_without_graphs(module, bundle, fake_gpu):
    rows = list(module("gpu_parity").check_parity(bundle, ["onnxruntime_cuda"]))
    assert [(row["network"], row["variant"], row["status"]) for row in rows] == [
        (network, f"onnxruntime_cuda fp32, {graphs}", "passed")
        for network in ("unet", "class_embedder")
        for graphs in ("CUDA graph", "no graph")
    ]
    kinds = [kind for kind, _ in fake_gpu.log.runs]
    assert kinds == (["record"] + ["replay"] * 5 + ["run"] * 6) * 2


def test_a_deviation_fails_and_an_engine_that_does_not_open_is_an_error(module, bundle, monkeypatch):
    parity = module("gpu_parity")
    opened = parity.open_variant

    class Wrong:
        def __init__(self, engine):
            self.engine = engine

        def __call__(self, **feeds):
            return {name: array * 1.01 for name, array in self.engine(**feeds).items()}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.engine.close()

    def wrong(bundle, spec, variant):
        if variant.backend == "openvino" and spec.name == "class_embedder":
            raise EngineError("it does not open")
        engine = opened(bundle, spec, variant)
        return Wrong(engine) if variant.backend == "openvino" else engine

    monkeypatch.setattr(parity, "open_variant", wrong)
    rows = [row for row in parity.check_parity(bundle, ["openvino"]) if "fp32" in row["variant"]]
    assert [row["status"] for row in rows] == ["failed", "error"]
    assert rows[0]["against_cpu"] == pytest.approx(0.01, rel=1e-2)
    assert rows[1]["reason"] == "it does not open"


def test_latency_of_a_gpu_counts_until_the_stream_is_done(module, bundle, fake_gpu):
    rows = list(module("gpu_latency").bundle_latency(bundle, ["onnxruntime_cuda"], 2))
    assert {row["variant"] for row in rows} == {"onnxruntime_cuda fp32, CUDA graph", "onnxruntime_cuda fp32, no graph"}
    assert all(row["fastest_ms"] <= row["median_ms"] for row in rows)
    import fake_cuda

    assert not any(stream.queue for stream in fake_cuda.current().streams.values()), "work was left undone"


def test_turns_go_on_when_a_variant_fails(module):
    def fail():
        raise RuntimeError("out of memory")

    found = module("gpu_latency").take_turns({"good": lambda: None, "bad": fail}, 3)
    assert found["bad"] == {"failed": "out of memory"}
    assert found["good"]["n"] == 3


def test_missing_plans_are_built_for_the_gpu_at_hand(module, bundle, monkeypatch):
    engines = module("gpu_engines")
    asked = []

    def build(bundle, network, target, options):
        asked.append((network, target.kind, target.sms, target.gpu, options.precision))
        raise EngineError("it cannot be built")

    monkeypatch.setattr(engines, "build_plan", build)
    rows = engines.build_missing(bundle, ["onnxruntime_cuda", "tensorrt", "tensorrt_rtx"], GPU, dry=False)
    assert asked == [
        (network, kind, ("sm89",), gpu, "fp32")
        for kind, gpu in (("tensorrt", "NVIDIA RTX 4090"), ("tensorrt_rtx", ""))
        for network in ("unet", "class_embedder")
    ]
    assert {(row["state"], row["reason"]) for row in rows} == {("failed", "it cannot be built")}
    only = engines.build_missing(bundle, ["tensorrt"], GPU, dry=True, networks=("unet",))
    assert [row["network"] for row in only] == ["unet"]


def test_the_report_names_the_machine_and_every_failure(module, tmp_path):
    results = module("gpu_report").GpuResults(tmp_path / "gpu.json", GPU, dry=False)
    row = {"bundle": "b", "network": "unet", "variant": "tensorrt fp16", "against_cpu": float("nan")}
    results.update("parity", [{**row, "status": "failed", "reason": "a relative error of nan"}])
    assert results.failures == ["parity: b unet tensorrt fp16: a relative error of nan"]
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert data["parts"]["parity"][0]["against_cpu"] is None
    assert data["machine"]["gpus"] == ["NVIDIA RTX 4090 (sm89)"]
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("# NVIDIA RTX 4090 (sm89)\n")
    assert "## What failed" in page
    assert "dry run" not in page
