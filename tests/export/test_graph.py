"""Graphs: what is stored, in how many bits, under which names; and that the numbers survive it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.bundle import Bundle, BundleWriter, write_bundle
from sfumato.engines.engine import open_engine
from sfumato.engines.manifest import Manifest
from sfumato.errors import BundleError, ExportError
from sfumato.export.assemble import assemble
from sfumato.export.graph import clean
from sfumato.export.network import Network, integers
from sfumato.export.write import export_network


class Tiny(nn.Module):
    """A table, a norm and two matrices, one of them used transposed."""

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 64)
        self.norm = nn.LayerNorm(64)
        self.first = nn.Linear(64, 48)
        self.second = nn.Linear(48, 24, bias=False)
        with torch.no_grad():
            self.second.weight *= scale
            self.norm.weight += torch.randn(64) * 0.1

    def forward(self, ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.norm(self.table(ids) + x)
        return self.second(torch.relu(self.first(h))), h.mean(dim=1)


def network(*, scale: float = 1.0, weights: str | None = None) -> Network:
    return Network(
        "tiny",
        lambda: Tiny(scale=scale),
        (Binding("ids", "int64", ("batch", "length")), Binding("x", "float32", ("batch", "length", 64))),
        (Binding("y", "float32", ("batch", "length", 24)), Binding("pooled", "float32", ("batch", 64))),
        {"batch": Dimension(1, 2, 8), "length": Dimension(2, 4, 32, 2)},
        {"ids": integers(50)},
        weights=weights,
    )


def write(out: Path, net: Network, precision: Any = "fp32") -> Bundle:
    with BundleWriter(out) as writer:
        spec = export_network(writer, net, precision)
        return writer.commit(Manifest("test", "tiny", "CC0-1.0", {}, {"tiny": spec}))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("tiny")
    made = {name: write(folder / name, network(), name) for name in ("fp32", "fp16", "bf16")}
    return made | {"int8": write(folder / "int8", network(weights="int8"))}


def _types(bundle: Bundle) -> dict[str, str]:
    graph = onnx.load(str(bundle.file("tiny.onnx")), load_external_data=False).graph
    return {i.name: onnx.TensorProto.DataType.Name(i.data_type) for i in graph.initializer}


@pytest.mark.parametrize(
    ("kind", "stored", "limit"),
    [("fp32", "FLOAT", 1e-6), ("fp16", "FLOAT16", 1e-3), ("bf16", "BFLOAT16", 1e-2), ("int8", "INT8", 2e-2)],
)
def test_large_weights_are_stored_as_asked_and_small_ones_stay_float32(bundles, kind, stored, limit) -> None:
    types = _types(bundles[kind])
    assert {types[n] for n in ("table.weight", "first.weight", "second.weight")} == {stored}
    assert {types[n] for n in ("norm.weight", "norm.bias", "first.bias")} == {"FLOAT"}
    spec = bundles[kind].network("tiny")
    assert spec.parity["relative"] < limit < spec.tolerance["fp32"] * 40
    assert spec.parity["relative"] < spec.tolerance["fp32"]


def test_storage_shrinks_the_weights_and_they_lie_in_one_file(bundles) -> None:
    sizes = {k: b.file("tiny.weights").stat().st_size for k, b in bundles.items()}
    assert sizes["fp16"] == sizes["bf16"] < 0.56 * sizes["fp32"]
    assert sizes["int8"] < 0.36 * sizes["fp32"]
    for bundle in bundles.values():
        assert bundle.network("tiny").weights == ("tiny.weights",)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_engines_run_every_storage_at_sizes_never_traced(bundles, kind, backend) -> None:
    module, generator = Tiny().eval(), torch.Generator().manual_seed(3)
    with open_engine(bundles[kind], "tiny", backend=backend, precision="fp32") as engine:
        for batch, length in ((1, 2), (5, 14)):
            ids = torch.randint(0, 50, (batch, length), generator=generator)
            x = torch.randn(batch, length, 64, generator=generator)
            with torch.no_grad():
                expected = module(ids, x)
            results = engine(ids=ids.numpy(), x=x.numpy())
            for result, reference in zip((results["y"], results["pooled"]), expected, strict=True):
                error = np.linalg.norm(result - reference.numpy()) / np.linalg.norm(reference.numpy())
                assert error < engine.spec.tolerance["fp32"]


def test_inputs_and_outputs_are_named_down_to_their_dimensions(bundles) -> None:
    graph = onnx.load(str(bundles["fp16"].file("tiny.onnx")), load_external_data=False).graph
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    assert shapes == {
        "ids": ["batch", "length"],
        "x": ["batch", "length", 64],
        "y": ["batch", "length", 24],
        "pooled": ["batch", 64],
    }


def test_weights_are_stored_ready_to_multiply(bundles) -> None:
    graph = onnx.load(str(bundles["fp16"].file("tiny.onnx")), load_external_data=False).graph
    assert not [n for n in graph.node if n.op_type == "Transpose"]
    shapes = {i.name: list(i.dims) for i in graph.initializer}
    assert shapes["first.weight"] == [64, 48]


def test_a_matrix_used_both_ways_is_stored_once_whichever_comes_first() -> None:
    info = onnx.helper.make_tensor_value_info
    weight = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "weight"], ["forward"]),
        onnx.helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]),
        onnx.helper.make_node("MatMul", ["forward", "turned"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, [2, 40])], [info("y", 1, [2, 40])], [onnx.numpy_helper.from_array(weight, "weight")]
    )
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]))
    clean(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert [i.name for i in proto.graph.initializer] == ["weight"]
    x = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)
    (y,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight @ weight.T, rtol=1e-5, atol=1e-4)


def test_nothing_of_the_machine_is_left_in_the_graph(bundles) -> None:
    for name in ("fp16", "int8"):
        data = bundles[name].file("tiny.onnx").read_bytes()
        for trace in (b"site-packages", b".py", str(Path.home()).encode(), str(Path.cwd()).encode()):
            assert trace not in data


def test_the_same_network_gives_the_same_bytes(bundles, tmp_path: Path) -> None:
    again = write(tmp_path / "again", network(), "fp16")
    assert again.manifest.files == bundles["fp16"].manifest.files


def test_weights_too_large_for_float16_stay_float32_and_are_named(tmp_path: Path) -> None:
    bundle = write(tmp_path / "huge", network(scale=1e6), "fp16")
    assert bundle.network("tiny").precision.keep_fp32 == ("second.weight",)
    assert _types(bundle)["second.weight"] == "FLOAT"


def test_references_hold_torchs_outputs(bundles) -> None:
    tensors = bundles["int8"].tensors("tiny.reference.safetensors")
    assert sorted(tensors) == ["in/ids", "in/x", "out/pooled", "out/y"]
    with torch.no_grad():
        y, _ = Tiny().eval()(torch.from_numpy(tensors["in/ids"]), torch.from_numpy(tensors["in/x"]))
    np.testing.assert_array_equal(y.numpy(), tensors["out/y"])


class Branching(nn.Module):
    """Follows its data, which no graph can."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0.0


@pytest.mark.parametrize(
    ("module", "message"), [(Branching, "cannot trace it over batch"), (Broken, "NaN or infinity")]
)
def test_what_cannot_be_exported_is_said_and_leaves_nothing(tmp_path: Path, module, message) -> None:
    binding = Binding("x", "float32", ("batch", 2))
    net = Network("odd", module, (binding,), (Binding("y", "float32", ("batch", 2)),), {"batch": Dimension(1, 2, 4)})
    with pytest.raises(ExportError, match=f"odd.*{message}"), BundleWriter(tmp_path / "out") as writer:
        export_network(writer, net, "fp32")
    assert list(tmp_path.iterdir()) == []


def _assemble(out: Path, networks: list[Network]) -> Bundle:
    """Exports a bundle as every recipe does: networks, a tokenizer, the manifest."""
    files = {"tokenizer.json": b"{" + b" " * 200_000 + b"}"}
    return assemble(out, "test", networks, settings={}, files=files, precision="fp32")


@pytest.mark.parametrize("name", ["tiny.reference.safetensors", "tiny.weights", "tokenizer.json"])
def test_a_place_that_takes_no_file_so_large_leaves_nothing_of_an_export(bundles, tmp_path: Path, name: str) -> None:
    """The system itself refuses the write, whichever library is writing."""
    resource = pytest.importorskip("resource")
    limit = 200_000 if name == "tokenizer.json" else bundles["fp32"].file(name).stat().st_size - 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(BundleError, match=r"out.*cannot (be written|write it) \((File too large|.* cut short)"):
            _assemble(tmp_path / "out", [network()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["pathlib.Path.write_bytes", "sfumato.export.graph.save", "os.write", "os.fsync"])
def test_a_full_disk_leaves_what_was_there_before_the_export(tmp_path: Path, monkeypatch, call: str) -> None:
    """At the reference, the weights, the tokenizer and the last sync."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_bundle(tmp_path / "out", Manifest("test", "old", "CC0-1.0", {}, {}), {"old": b"old"})
    networks = [] if call.startswith("os.") else [network()]
    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(BundleError, match=r"out.*\(No space left on device\); free space there, or write"):
            _assemble(tmp_path / "out", networks)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert Bundle.open(tmp_path / "out").manifest.name == "old"


def test_interrupting_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(message: str) -> None:
        if "checking" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), BundleWriter(tmp_path / "out") as writer:
        export_network(writer, network(), "fp32", on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []
