from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")

import sfumato.engines.openvino as module  # noqa: E402
from sfumato.engines.blobs import HEADER, BlobStore  # noqa: E402
from sfumato.engines.bundle import Bundle  # noqa: E402
from sfumato.engines.engine import open_engine  # noqa: E402
from sfumato.engines.openvino import OpenVinoEngine  # noqa: E402
from sfumato.errors import EngineError  # noqa: E402


@pytest.fixture
def bundle(tiny):
    return Bundle.open(tiny)


def engine(bundle, **options):
    return OpenVinoEngine(bundle, bundle.network("unet"), precision="fp32", threads=1, **options)


def blobs(cache: Path) -> list[Path]:
    return sorted(cache.glob("cpu-openvino*/*.blob"))


def test_shapes_are_compiled_once_and_then_read_from_the_cache(bundle, models, cache):
    first = engine(bundle)
    for seed in range(3):
        first(**models.feeds(2, seed=seed))
    wanted = first(**models.feeds(1))["prediction"]
    assert list(first.cached.values()) == [False, False]
    assert len(blobs(cache)) == 2
    second = engine(bundle)
    got = second(**models.feeds(1))["prediction"]
    assert list(second.cached.values()) == [True]
    assert second._model is None
    np.testing.assert_array_equal(got, wanted)


def test_the_longest_unused_shapes_go_first(bundle, models):
    made = engine(bundle, shapes=2, cache=False)
    keys = []
    for batch in (1, 2, 1, 3):
        made(**models.feeds(batch))
        keys.append([key[0][0] for key in made._compiled])
    assert keys == [[1], [1, 2], [2, 1], [1, 3]]


DAMAGE = {
    "empty": lambda data: b"",
    "only a header": lambda data: data[:HEADER],
    "truncated": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"x",
    "flipped": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "foreign": lambda data: os.urandom(len(data)),
    "of another key": lambda data: data[:200].replace(data[85:150], b"0" * 65) + data[200:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_blob_is_compiled_again_and_mended(bundle, models, cache, damage):
    feeds = models.feeds()
    wanted = engine(bundle)(**feeds)["prediction"]
    (blob,) = blobs(cache)
    good = blob.read_bytes()
    blob.write_bytes(DAMAGE[damage](good))
    again = engine(bundle)
    np.testing.assert_array_equal(again(**feeds)["prediction"], wanted)
    assert list(again.cached.values()) == [False]
    third = engine(bundle)
    third(**feeds)
    assert list(third.cached.values()) == [True]


def test_a_whole_blob_that_openvino_refuses_is_compiled_again(bundle, models, cache):
    made = engine(bundle)
    feeds = models.feeds()
    store = made._store(tuple(feeds[name].shape for name in ("x", "t")))
    store.store(b"well hashed, but no network")
    assert store.load() is not None
    np.testing.assert_allclose(made(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)
    assert list(made.cached.values()) == [False]


@pytest.mark.parametrize("change", ["precision", "shapes", "threads", "weights", "processor", "version"])
def test_everything_that_matters_is_in_the_key(bundle, models, monkeypatch, tmp_path, change):
    shapes = ((2, 4, 4, 6), (2,))
    spec = bundle.network("unet")
    before = engine(bundle)._store(shapes).path
    assert engine(bundle)._store(shapes).path == before
    precision, threads = "fp32", 1
    match change:
        case "precision":
            precision = "bf16"
        case "shapes":
            shapes = ((1, 4, 4, 6), (1,))
        case "threads":
            threads = 2
        case "weights":
            bundle = models.write_tiny(tmp_path / "other", weight=models.WEIGHT * 2)
        case "processor":
            facts = replace(module.detect(), flags=("avx",))
            monkeypatch.setattr(module, "detect", lambda: facts)
        case "version":
            monkeypatch.setattr(module, "_version", lambda: "1999.1.0")
    assert OpenVinoEngine(bundle, spec, precision=precision, threads=threads)._store(shapes).path != before


def test_an_unverified_bundle_adds_nothing_to_the_cache(tiny, models, cache):
    feeds = models.feeds()
    engine(Bundle.open(tiny, verify=False))(**feeds)
    assert blobs(cache) == []
    engine(Bundle.open(tiny))(**feeds)
    reader = engine(Bundle.open(tiny, verify=False))
    reader(**feeds)
    assert list(reader.cached.values()) == [True]


def test_a_cache_that_may_only_be_read_is_read(bundle, models, cache, monkeypatch):
    engine(bundle)(**models.feeds())

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("sfumato.engines.blobs.os.utime", refuse)
    reader = engine(bundle)
    reader(**models.feeds())
    assert list(reader.cached.values()) == [True]


def test_a_cache_that_cannot_be_written_is_no_error(bundle, models, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "file" / "cache"))
    feeds = models.feeds()
    np.testing.assert_allclose(engine(bundle)(**feeds)["prediction"], models.expected(**feeds), atol=1e-4)


def test_large_networks_and_engines_without_cache_leave_no_blobs(bundle, models, cache, monkeypatch):
    engine(bundle, cache=False)(**models.feeds())
    monkeypatch.setattr(module, "BLOB_LIMIT", 10)
    engine(bundle)(**models.feeds())
    assert blobs(cache) == []


def test_the_cache_stays_below_its_limit(cache, monkeypatch):
    stores = [BlobStore("tag", {"i": i}) for i in range(4)]
    monkeypatch.setenv("SFUMATO_CACHE_LIMIT", str(2 * (HEADER + 1000)))
    for i, store in enumerate(stores):
        assert store.store(bytes(1000))
        os.utime(store.path, (i, i))
        if i == 1:
            os.utime(stores[0].path, (10, 10))
    assert [store.path.exists() for store in stores] == [True, False, False, True]


CHILD = """
import json, sys
sys.path.insert(0, sys.argv[2])
import engine_models as models
from sfumato.engines.bundle import Bundle
from sfumato.engines.openvino import OpenVinoEngine
bundle = Bundle.open(sys.argv[1])
engine = OpenVinoEngine(bundle, bundle.network("unet"), precision="fp32", threads=1)
sys.stdin.readline()
out = engine(**models.feeds())["prediction"]
print(json.dumps([list(engine.cached.values()), float(out.sum())]))
"""


def test_two_processes_share_one_compilation(tiny, cache):
    command = [sys.executable, "-c", CHILD, str(tiny), str(Path(__file__).parents[1] / "support")]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [None, None]

    def run(i):
        results[i] = json.loads(children[i].communicate("go\n")[0])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(cached for (cached,), _ in results) == [False, True]
    assert results[0][1] == results[1][1]
    assert len(blobs(cache)) == 1
    assert [p.name for p in cache.rglob("*.tmp")] == []


def test_inputs_and_outputs_are_not_copied(bundle, models):
    made = engine(bundle)
    feeds = models.feeds()
    made(**feeds)
    (compiled,) = made._compiled.values()
    assert compiled.fed["x"] is feeds["x"]
    assert compiled.request.get_tensor(compiled.inputs["x"]).data.ctypes.data == feeds["x"].ctypes.data
    out = made(**feeds)["prediction"]
    assert compiled.request.get_tensor(compiled.ports["prediction"]).data.ctypes.data == out.ctypes.data
    assert compiled.own == {}


def test_half_precision_weights_stay_half_in_the_blob(models, tmp_path, cache):
    """The blob of 4 MB of float16 weights is about as long; OpenVINO by itself would widen them to 8 MB."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    from sfumato.engines.bundle import BundleWriter

    size = 1448
    weight = np.random.default_rng(0).standard_normal((size, size)).astype(np.float16)
    spec = replace(models.EMBEDDER, name="dense", graph="dense.onnx", weights=("dense.weights",))
    binding = replace(spec.outputs[0], name="x", shape=("batch", size))
    spec = replace(spec, inputs=(binding,), outputs=(replace(binding, name="z"),))
    with BundleWriter(tmp_path / "dense") as writer:
        models.save(
            writer.path("dense.onnx"),
            [
                helper.make_node("Cast", ["w"], ["w32"], to=onnx.TensorProto.FLOAT),
                helper.make_node("MatMul", ["x", "w32"], ["z"]),
            ],
            [("x", TensorProto.FLOAT, ["batch", size])],
            [("z", TensorProto.FLOAT, ["batch", size])],
            {"w": weight},
        )
        bundle = writer.commit(models.manifest(spec))
    x = np.random.default_rng(1).standard_normal((2, size)).astype(np.float32)
    for _ in range(2):
        made = open_engine(bundle, "dense", precision="fp32", threads=1)
        np.testing.assert_allclose(made(x=x)["z"], x @ weight.astype(np.float32), atol=1e-2)
    (blob,) = blobs(cache)
    assert blob.stat().st_size < 1.2 * weight.nbytes


def test_a_silent_change_of_precision_is_refused(bundle, models):
    made = engine(bundle, cache=False)
    made._config["INFERENCE_PRECISION_HINT"] = "bf16"
    if module._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES").count("BF16"):
        with pytest.raises(EngineError, match="OpenVINO was told f32 and computes in bf16"):
            made(**models.feeds())


INTERRUPT = """
import os, signal, sys, time
from sfumato.engines.bundle import Bundle
from sfumato.engines.openvino import OpenVinoEngine
import numpy as np

bundle = Bundle.open(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
engines = [OpenVinoEngine(bundle, spec, precision="fp32", cache=False) for spec in bundle.manifest.networks.values()]
for engine in engines:
    symbols = {name: d.opt for name, d in engine.spec.dimensions.items()}
    engine(**{b.name: np.zeros([symbols.get(e, e) for e in b.shape], b.dtype) for b in engine.spec.inputs})
for engine in engines:
    engine.close()
del engine, engines
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_engines_were_closed_ends_no_process(tiny):
    done = subprocess.run([sys.executable, "-c", INTERRUPT, str(tiny)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted"), done.stderr


def test_an_openvino_that_does_not_load_says_so(bundle, monkeypatch):
    def broken():
        raise RuntimeError("Exception from core.cpp:1:\nno plugins.xml\n")

    monkeypatch.setattr(openvino, "Core", broken)
    monkeypatch.setattr(module, "_core", module._core.__wrapped__)
    with pytest.raises(EngineError, match=r"installed but does not load \(no plugins.xml\); reinstall openvino"):
        engine(bundle)
